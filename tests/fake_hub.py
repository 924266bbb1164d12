"""A small Hugging Face Hub for tests: the part of its HTTP API that uploads and downloads need."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """The contents of the fake Hub, and the requests it has received.

    Attributes:
        repos: Name -> its files by name, and `None` -> whether it is private.
        stored: Uploaded contents by SHA-256, committed or not.
        received: The SHA-256 of each upload, once per upload.
        asked: Method and path of each request.
        fails_after: The number of uploads after which each further one fails; None for never.
    """

    def __init__(self):
        self.repos = {}
        self.stored = {}
        self.received = []
        self.asked = []
        self.fails_after = None
        self.address = ""

    def environment(self, folder, token=TOKEN):
        """Return the environment variables that make a process use this as the Hub."""
        found = {
            "HF_ENDPOINT": self.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(folder), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        return {**found, **({"HF_TOKEN": token} if token else {})}


def take_for_the_hub(hub, cache, monkeypatch):
    """Make this process use a fake Hub, and download into a separate cache."""
    import huggingface_hub

    for name, value in {
        "ENDPOINT": hub.address, "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
    }.items():  # fmt: skip
        monkeypatch.setattr(huggingface_hub.constants, name, value)


@contextmanager
def fake_hub():
    hub = FakeHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each response is 40 ms late
    hub: FakeHub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self._path()
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path):
            return self._model(found[1])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            return self._tree(found[1])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self._file(found[1], found[2])
        return self._json({"error": "unknown"}, 404)

    def do_POST(self):
        path, body = self._path(), self._body()
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, 401)
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            address = {"url": f"{self.hub.address}/{name}"}
            if name in self.hub.repos:
                return self._json({"error": "You already created this model repo", **address}, 409)
            is_private = asked.get("visibility") == "private" or asked.get("private") is True
            self.hub.repos[name] = {None: is_private}
            return self._json(address)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            names = [file["path"] for file in json.loads(body)["files"]]
            return self._json({"files": [self._mode(name) for name in names]})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._json({"objects": [self._object(o) for o in json.loads(body)["objects"]]})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(self.hub.repos[found[1]], body)
            url = f"{self.hub.address}/{found[1]}/commit/{COMMIT}"
            return self._json({"commitUrl": url, "commitOid": COMMIT})
        return self._json({"error": "unknown"}, 404)

    def do_PUT(self):
        body = self._body()
        if self.hub.fails_after is not None and len(self.hub.received) >= self.hub.fails_after:
            return self._json({"error": "the network is gone"}, 400)
        digest = hashlib.sha256(body).hexdigest()
        self.hub.received.append(digest)
        self.hub.stored[digest] = body
        return self._json({})

    def _path(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        return path

    def _body(self):
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _mode(self, name):
        is_large = name.endswith((".safetensors", ".ckpt", ".pt", ".bin", ".png"))
        return {
            "path": name, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False,
        }  # fmt: skip

    def _object(self, wanted):
        if wanted["oid"] in self.hub.stored:
            return wanted  # already stored
        action = {"upload": {"href": f"{self.hub.address}/store/{wanted['oid']}"}}
        return {**wanted, "actions": action}

    def _commit(self, repo, body):
        import base64

        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                repo[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repo[value["path"]] = self.hub.stored[value["oid"]]

    def _names(self, repo):
        return sorted(name for name in self.hub.repos[repo] if name is not None)

    def _model(self, repo):
        if repo not in self.hub.repos:
            return self._json({"error": "Repository not found"}, 404, **_MISSING)
        files = [{"rfilename": name} for name in self._names(repo)]
        return self._json({
            "id": repo, "sha": COMMIT, "siblings": files, "private": self.hub.repos[repo][None],
        })  # fmt: skip

    def _tree(self, repo):
        content = self.hub.repos[repo]
        return self._json([
            {"type": "file", "path": name, "size": len(content[name]), "oid": _oid(content[name])}
            for name in self._names(repo)
        ])  # fmt: skip

    def _file(self, repo, name):
        content = self.hub.repos.get(repo, {}).get(name)
        if content is None:
            return self._json(
                {"error": "Entry not found"}, 404, **{"X-Error-Code": "EntryNotFound"}
            )
        return self._answer(content, 200, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": COMMIT})

    def _json(self, value, status=200, **headers):
        content = json.dumps(value).encode()
        self._answer(content, status, {"content-type": "application/json", **headers})

    def _answer(self, content, status, headers):
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


_MISSING = {"X-Error-Code": "RepoNotFound"}


def _oid(content):
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
