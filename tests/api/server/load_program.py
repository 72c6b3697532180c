"""The real application over a worker that only takes its time, with a route that tells what it holds."""

import asyncio
import gc
import json
import os
import sys
from pathlib import Path

from millstream.api.server.config import ServerConfig
from millstream.api.server.logs import configure_logging
from millstream.api.server.serving import run_server
from millstream.benchmarks.serve.application import NAME, make_application, paced_model


def anonymous_kib():
    """Resident memory that belongs to no file, or None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), None)


def open_descriptors():
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return None


def main(options):
    config = ServerConfig(port=0)
    model = paced_model(options.pop("step_seconds"), **options)
    app, load = make_application(model, config)
    configure_logging("info", json=True)

    async def audit():
        service = app.state.service
        stats = service.engine.stats(NAME)
        # The check wants to be between two steps; without requests there are none.
        if not (stats.running or stats.waiting):
            service.engine._models[NAME].running.loop.scheduler.check_integrity()
        gc.collect()
        return {
            "running": stats.running,
            "waiting": stats.waiting,
            "held_blocks": stats.held_blocks,
            "in_flight": app.state.drain.in_flight - 1,  # this one
            "reports": len(service._reports),
            "tasks": len(asyncio.all_tasks()),
            "descriptors": open_descriptors(),
            "anonymous_kib": anonymous_kib(),
        }

    app.add_api_route("/audit", audit)
    return run_server(app, config, prepare=load)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
