import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from millstream.backends.bundled import BUNDLED_MODELS
from millstream.backends.models.discovery import locate
from millstream.backends.models.model_files import files_to_fetch, missing_files
from millstream.errors import InvalidArgument, ModelError, ModelFormatError, ModelNotFound

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": b"tensors" * 1000,
    "pytorch_model.bin": b"pickled",
    "consolidated.safetensors": b"again",
    "README.md": b"read me",
    "original/params.json": b"{}",
    "chat_templates/rag.jinja": b"R",
}
WANTED = {"config.json", "tokenizer.json", "model.safetensors", "chat_templates/rag.jinja"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of these tests may look at the real hub or at the user's own cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def lay_out_cache(
    cache: Path, repo: str, files: dict[str, bytes], commit: str = COMMIT, ref: str = "main"
) -> Path:
    """A repository as the hub's client stores it: blobs, and links to them in the commit's snapshot."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for number, (name, content) in enumerate(files.items()):
        blob, link = folder / "blobs" / f"{number:040x}", snapshot / name
        for path in (blob, link, folder / "refs" / ref):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(blob)
    (folder / "refs" / ref).write_text(commit)
    return snapshot


def test_folder_and_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    assert locate(str(tmp_path)) == tmp_path
    assert locate(str(tmp_path / "m.gguf")) == tmp_path / "m.gguf"
    assert locate("m.gguf") == Path("m.gguf")


def test_bundled_name_goes_before_a_folder(tmp_path: Path) -> None:
    (tmp_path / "pyhelp").mkdir()
    assert locate("pyhelp") == BUNDLED_MODELS["pyhelp"]
    assert locate("./pyhelp") == Path("pyhelp")


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "m.bin").touch()
    with pytest.raises(ModelFormatError, match=r"neither a folder nor a \.gguf file"):
        locate("m.bin")


@pytest.mark.parametrize("name", ["", "  ", None, 3])
def test_names_that_are_none(name: Any) -> None:
    with pytest.raises(InvalidArgument, match="allowed: a folder, a hub id or a bundled name"):
        locate(name)


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "~absent/m", "a/b/c.gguf", "../x", "a--b/c"])
def test_path_that_does_not_exist(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=f"there is no folder or .gguf file '{name}'.*pyhelp"):
        locate(name, cache_dir=tmp_path)


def test_close_matches_are_suggested(tmp_path: Path) -> None:
    (tmp_path / "models" / "llama-tiny").mkdir(parents=True)
    with pytest.raises(ModelNotFound, match=r"did you mean './models/llama-tiny'\?"):
        locate("./models/llama-tinny")
    with pytest.raises(ModelNotFound, match=r"\(bundled models: pyhelp.*\); did you mean 'pyhelp'"):
        locate("pyhelpp", cache_dir=tmp_path, offline=True)
    lay_out_cache(tmp_path, "owner/model-7b", FILES)
    with pytest.raises(ModelNotFound, match="did you mean 'owner/model-7b'"):
        locate("owner/model-7B-chat", cache_dir=tmp_path, offline=True)


def test_revision_belongs_to_hub_ids(tmp_path: Path) -> None:
    for name in ("pyhelp", str(tmp_path)):
        with pytest.raises(InvalidArgument, match="revision is 'main'; allowed: None, because"):
            locate(name, revision="main")


def test_cache_is_used_without_network(tmp_path: Path) -> None:
    snapshot = lay_out_cache(tmp_path, "owner/name", FILES)
    assert locate("owner/name", cache_dir=tmp_path) == snapshot
    assert locate("owner/name", cache_dir=tmp_path, revision=COMMIT, offline=True) == snapshot
    other = lay_out_cache(tmp_path, "owner/name", FILES, commit="f" * 40, ref="v2")
    assert locate("owner/name", cache_dir=tmp_path, revision="v2") == other
    assert locate("owner/name", cache_dir=tmp_path) == snapshot


def test_id_without_owner_in_the_cache(tmp_path: Path) -> None:
    snapshot = lay_out_cache(tmp_path, "gpt2", FILES)
    assert locate("gpt2", cache_dir=tmp_path) == snapshot


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "argument"])
def test_offline_and_not_cached(switch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if switch != "argument":
        monkeypatch.setenv(switch, "1")
    with pytest.raises(ModelNotFound) as caught:
        locate(
            "owner/name", cache_dir=tmp_path, revision="v2", offline=True if switch == "argument" else None
        )
    assert str(caught.value) == (
        f"hub model 'owner/name' at revision 'v2' is not in the cache {tmp_path}, and the network "
        "is switched off: give a path, or switch it on (HF_HUB_OFFLINE=0) to download it "
        f"(bundled models: {', '.join(sorted(BUNDLED_MODELS))})"
    )


def test_offline_and_partly_cached(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files = {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00001-of-00002.safetensors": b"x",
    }
    lay_out_cache(tmp_path, "owner/name", files)
    expected = r"only partly in the cache .* \(missing: model-00002-of-00002.safetensors, tokenizer.json\)"
    with pytest.raises(ModelNotFound, match=expected):
        locate("owner/name", cache_dir=tmp_path, offline=True)


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["config.json", "tokenizer.json", "model.safetensors"], ()),
        (["config.json", "tokenizer.model", "pytorch_model.bin"], ()),
        (["tokenizer.json", "model.safetensors"], ("config.json",)),
        (["config.json", "tokenizer.json"], ("model.safetensors",)),
        (["config.json", "vocab.json", "m-1-of-2.safetensors"], ("m-2-of-2.safetensors",)),
    ],
)
def test_missing_files(names: list[str], missing: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert missing_files(tmp_path) == missing


def test_missing_modules_of_sentence_transformers(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).touch()
    kinds = ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")
    modules = [
        {"idx": 0, "path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    lacking = ("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors")
    assert missing_files(tmp_path) == lacking
    for name in lacking:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert missing_files(tmp_path) == ()
    (tmp_path / "modules.json").write_text("{}")
    with pytest.raises(ModelFormatError, match=r"modules\.json is no list of modules"):
        missing_files(tmp_path)


def test_missing_parts_of_a_gguf_file(tmp_path: Path) -> None:
    first = tmp_path / "m-00001-of-00002.gguf"
    first.touch()
    assert missing_files(first) == ("m-00002-of-00002.gguf",)
    (tmp_path / "m-00002-of-00002.gguf").touch()
    assert missing_files(first) == ()


def test_dangling_links_are_missing_files(tmp_path: Path) -> None:
    snapshot = lay_out_cache(tmp_path, "owner/name", {n: FILES[n] for n in WANTED})
    (snapshot / "model.safetensors").resolve().unlink()
    assert missing_files(snapshot) == ("model.safetensors",)


def test_damaged_index(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelFormatError, match="is no index of weight files"):
        missing_files(tmp_path)


def test_files_to_fetch() -> None:
    assert set(files_to_fetch(FILES)) == WANTED
    pickled = ["config.json", "pytorch_model.bin", "training_args.bin", "pytorch_model.bin.index.json"]
    assert set(files_to_fetch(pickled)) == set(pickled) - {"training_args.bin"}
    sharded = ["model.safetensors.index.json", "model-1-of-1.safetensors", "pytorch_model.bin.index.json"]
    assert set(files_to_fetch(sharded)) == set(sharded[:2])
    modules = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    copies = [
        "onnx/config.json",
        "onnx/model.onnx",
        "openvino/model.safetensors",
        "2_Dense/pytorch_model.bin",
    ]
    encoder = ["config.json", "modules.json", "sentence_bert_config.json", "vocab.txt", "model.safetensors"]
    assert set(files_to_fetch([*encoder, *modules, *copies])) == {*encoder, *modules}
    encoder.remove("modules.json")
    assert set(files_to_fetch([*encoder, *modules, *copies])) == set(encoder)
    with pytest.raises(
        ModelFormatError, match=r"no \.safetensors or pytorch_model\.bin weights, only \.gguf"
    ):
        files_to_fetch(["config.json", "m.gguf"])


GGUFS = {
    "model-Q4_K_M.gguf": b"four bits",
    "big/model-Q8_0-00001-of-00002.gguf": b"first",
    "big/model-Q8_0-00002-of-00002.gguf": b"second",
    "mmproj-model-f16.gguf": b"a projector",
    "README.md": b"read me",
}


@pytest.mark.parametrize("wanted", ["Q4_K_M", "q4_k_m", "model-Q4_K_M.gguf"])
def test_folder_with_a_quantisation(wanted: str, tmp_path: Path) -> None:
    for name in GGUFS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert locate(f"{tmp_path}:{wanted}") == tmp_path / "model-Q4_K_M.gguf"
    assert locate(f"{tmp_path}:q8_0") == tmp_path / "big" / "model-Q8_0-00001-of-00002.gguf"
    with pytest.raises(ModelNotFound, match=r"has no \.gguf model 'Q2_K'; it has Q8_0, Q4_K_M$"):
        locate(f"{tmp_path}:Q2_K")


def test_folder_with_a_quantisation_that_several_files_have(tmp_path: Path) -> None:
    for name in ("a-Q8_0.gguf", "b-Q8_0.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelFormatError, match=r"2 \.gguf models called 'Q8_0': .*:a-Q8_0\.gguf or "):
        locate(f"{tmp_path}:Q8_0")
    assert locate(f"{tmp_path}:b-Q8_0.gguf") == tmp_path / "b-Q8_0.gguf"


@pytest.mark.parametrize("name", ["./absent:Q8_0", "owner/name:"])
def test_quantisation_of_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=f"there is no folder or .gguf file '{name}'"):
        locate(name, cache_dir=tmp_path)


def test_cached_quantisation_is_used_without_network(tmp_path: Path) -> None:
    snapshot = lay_out_cache(tmp_path, "owner/name", GGUFS)
    assert locate("owner/name:Q4_K_M", cache_dir=tmp_path) == snapshot / "model-Q4_K_M.gguf"
    second = snapshot / "big" / "model-Q8_0-00002-of-00002.gguf"
    assert locate("owner/name:q8_0", cache_dir=tmp_path, offline=True).parent == second.parent
    second.unlink()
    expected = (
        r"'owner/name:q8_0' is only partly in the cache .*missing: big/model-Q8_0-00002-of-00002\.gguf\)"
    )
    with pytest.raises(ModelNotFound, match=expected):
        locate("owner/name:q8_0", cache_dir=tmp_path, offline=True)
    with pytest.raises(ModelNotFound, match=r"missing: the \.gguf file of Q2_K\)"):
        locate("owner/name:Q2_K", cache_dir=tmp_path, offline=True)


class FakeHub:
    """The few answers of the hub that fetching a model needs, on a loopback port."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = dict(FILES)
        self.error: tuple[int, str] | None = None
        self.error_on_files: tuple[int, str] | None = None
        self.fetched: list[str] = []
        self.tokens: set[str | None] = set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        is_file = "/resolve/" in path
        error = self.error or (self.error_on_files if is_file else None)
        if error:
            return error[0], {"X-Error-Code": error[1], "X-Error-Message": error[1]}, b"{}"
        if is_file:
            name = unquote(path.split("/resolve/")[1].split("/", 1)[1])
            if name not in self.files:
                return 404, {"X-Error-Code": "EntryNotFound"}, b""
            self.fetched.append(name)
            return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{abs(hash(name)):040x}"'}, self.files[name]
        if "/tree/" in path:
            tree = [
                {"type": "file", "path": n, "size": len(c), "oid": f"{i:040x}"}
                for i, (n, c) in self._numbered()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
        siblings = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
        info = {"id": "owner/name", "modelId": "owner/name", "sha": COMMIT, "siblings": siblings, "tags": []}
        return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()

    def _numbered(self) -> Any:
        return enumerate(self.files.items())

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if "/owner/name" in self.path:
                    hub.tokens.add(self.headers.get("Authorization"))
                status, headers, body = hub.answer(urlsplit(self.path).path)
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, *args: Any) -> None:
                pass

        return Handler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    hub = FakeHub()
    thread = threading.Thread(target=hub.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    thread.join()


def test_download_fetches_what_the_model_needs(hub: FakeHub, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    folder = locate(
        "owner/name",
        cache_dir=tmp_path / "cache",
        token="hf_secret",
        progress=lambda *said: told.append(said),
    )
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert present == WANTED
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert hub.tokens == {"Bearer hf_secret"}
    shares = [share for what, share in told if what == "download"]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    hub.fetched.clear()
    assert locate("owner/name", cache_dir=tmp_path / "cache") == folder
    assert hub.fetched == []


def test_incomplete_copy_is_completed(hub: FakeHub, tmp_path: Path) -> None:
    folder = locate("owner/name", cache_dir=tmp_path)
    (folder / "model.safetensors").unlink()
    assert locate("owner/name", cache_dir=tmp_path) == folder
    assert missing_files(folder) == ()


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (
            401,
            "RepoNotFound",
            r"'owner/name' at .* does not exist on the hub, or is private .*HF_TOKEN.*pyhelp",
        ),
        (404, "RepoNotFound", r"'owner/name' at .* does not exist on the hub"),
        (
            403,
            "GatedRepo",
            r"is gated: accept its terms at http://127.0.0.1:\d+/owner/name and give a token",
        ),
        (404, "RevisionNotFound", r"at revision 'v9' does not exist, but the repository does"),
        (401, "Invalid credentials in Authorization header", "cannot be read with this token.* 401"),
        (503, "", "cannot be fetched now: the hub answered 503"),
    ],
)
def test_refusals_are_told_apart(hub: FakeHub, status: int, code: str, message: str, tmp_path: Path) -> None:
    hub.error = (status, code)
    with pytest.raises(ModelNotFound, match=message) as caught:
        locate("owner/name", cache_dir=tmp_path, revision="v9")
    assert "\n" not in str(caught.value)


def test_gate_that_shows_only_at_the_files(hub: FakeHub, tmp_path: Path) -> None:
    hub.error_on_files = (403, "GatedRepo")
    with pytest.raises(ModelNotFound, match="is gated"):
        locate("owner/name", cache_dir=tmp_path)


def test_repository_without_weights(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {"config.json": b"{}", "model-q4.gguf": b"x"}
    with pytest.raises(ModelFormatError, match=r"hub model 'owner/name': .* only \.gguf"):
        locate("owner/name", cache_dir=tmp_path)
    assert hub.fetched == []


def test_download_fetches_only_the_quantisation(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {**FILES, **GGUFS}
    path = locate("owner/name:q4_k_m", cache_dir=tmp_path)
    assert path.name == "model-Q4_K_M.gguf"
    assert path.read_bytes() == b"four bits"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    first = locate("owner/name:Q8_0", cache_dir=tmp_path)
    assert sorted(file.read_bytes() for file in first.parent.iterdir()) == [b"first", b"second"]
    hub.fetched.clear()
    assert locate("owner/name:Q4_K_M", cache_dir=tmp_path) == path
    assert hub.fetched == []


def test_quantisations_that_the_hub_has_are_listed(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = dict(GGUFS)
    with pytest.raises(ModelNotFound, match=r"'owner/name': .* no \.gguf model 'Q2_K'; it has Q8_0, Q4_K_M$"):
        locate("owner/name:Q2_K", cache_dir=tmp_path)
    with pytest.raises(ModelFormatError, match=r"only \.gguf; name one .* behind a colon: Q8_0, Q4_K_M$"):
        locate("owner/name", cache_dir=tmp_path)
    del hub.files["big/model-Q8_0-00001-of-00002.gguf"]
    with pytest.raises(ModelFormatError, match=r"lacks big/model-Q8_0-00001-of-00002\.gguf$"):
        locate("owner/name:Q8_0", cache_dir=tmp_path)
    hub.files = dict(FILES)
    with pytest.raises(ModelFormatError, match=r"has no \.gguf model$"):
        locate("owner/name:Q8_0", cache_dir=tmp_path)
    assert hub.fetched == []


def test_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(
        ModelNotFound, match=r"not in the cache .*, and the hub cannot be reached \(.*HF_ENDPOINT"
    ):
        locate("owner/name", cache_dir=tmp_path)
    with pytest.raises(
        ModelNotFound, match="'nname' is neither a folder nor a bundled model, and as a hub model it"
    ):
        locate("nname", cache_dir=tmp_path)


def test_cache_that_cannot_be_written(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"downloading hub model 'owner/name' to .* failed"):
        locate("owner/name", cache_dir=tmp_path / "file")


def test_local_models_need_no_hub_client() -> None:
    code = (
        "import sys; from millstream.backends.models.discovery import locate; locate('pyhelp'); "
        "print(any(name.startswith('huggingface_hub') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
