"""Where pyhelp's facts come from: the modules, classes and help topics that are read."""

from __future__ import annotations

__all__ = ["CLASSES", "JSON_MODULES", "MODULES", "SIGNATURE_MODULES", "TOPICS"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MODULES: tuple[str, ...] = _words(
    """
    builtins os os.path json math cmath re itertools collections functools asyncio pathlib random string
    datetime time subprocess threading statistics textwrap shutil operator copy heapq bisect contextlib
    dataclasses enum fractions decimal glob fnmatch hashlib hmac secrets base64 binascii struct csv
    configparser argparse logging socket queue inspect types typing abc sys io tempfile zipfile tarfile
    gzip zlib pickle sqlite3 urllib.parse urllib.request html difflib calendar locale platform getpass
    uuid signal select selectors traceback warnings weakref gc array numbers keyword ast dis timeit
    pprint reprlib shlex linecache fileinput filecmp stat sched multiprocessing concurrent.futures
    ipaddress unicodedata codecs colorsys cProfile pdb unittest doctest importlib mimetypes zoneinfo
    contextvars graphlib tomllib bz2 lzma webbrowser email
    """
)
"""Modules whose public functions and classes are described, the best known first."""

CLASSES: tuple[str, ...] = _words(
    """
    str list dict set frozenset tuple bytes int float complex range slice memoryview pathlib.Path
    pathlib.PurePath collections.deque collections.Counter collections.OrderedDict collections.ChainMap
    datetime.datetime datetime.date datetime.timedelta datetime.time re.Pattern re.Match
    threading.Thread threading.Event threading.Condition asyncio.Queue asyncio.Event asyncio.Task
    asyncio.Future asyncio.Semaphore queue.Queue subprocess.Popen random.Random fractions.Fraction
    io.StringIO io.BytesIO concurrent.futures.Executor concurrent.futures.Future zipfile.ZipFile
    socket.socket logging.Logger contextlib.ExitStack uuid.UUID argparse.ArgumentParser
    configparser.ConfigParser string.Formatter statistics.NormalDist
    """
)
"""Classes whose methods are described as well."""

TOPICS: dict[str, str] = {
    "CONTEXTMANAGERS": "a context manager",
    "DYNAMICFEATURES": "name resolution",
    "EXCEPTIONS": "an exception",
    "EXECUTION": "a code block",
    "FUNCTIONS": "a function object",
    "MAPPINGS": "a mapping object",
    "NUMBERS": "a numeric literal",
    "SEQUENCES": "a sequence type",
    "SHIFTING": "a shifting operation",
    "POWER": "the power operator",
    "COMPARISON": "the priority of comparisons",
    "TRUTHVALUE": "truth value testing",
    "LISTLITERALS": "a list display",
    "SLICINGS": "a slicing",
    "SUBSCRIPTS": "a subscription",
    "TUPLES": "a tuple expression",
    "LITERALS": "the value of a literal",
    "COMPLEX": "an imaginary literal",
    "METHODS": "a method object",
    "SPECIALMETHODS": "a special method",
}
"""Topic of the interactive help -> how a question names it."""

SIGNATURE_MODULES: frozenset[str] = frozenset(MODULES[: MODULES.index("hashlib")])
"""Modules whose functions' signatures are asked for."""

JSON_MODULES: frozenset[str] = frozenset(
    _words(
        """
    builtins os.path json math re itertools collections functools random string time textwrap shutil
    """
    )
)
"""Modules whose functions are also asked for as JSON objects."""
