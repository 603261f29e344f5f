"""What a Hub answers to each question of huggingface_hub about data set repositories.

The refusals are the Hub's own words, as people have reported them.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import struct
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from dataset_repos import LARGE, Blob, Refusal, Repo, Tree

if TYPE_CHECKING:
    from dataset_hub import DatasetHub


class Answers(BaseHTTPRequestHandler):
    """One connection to ``hub``; a route's answer is JSON to send, a refusal, or None where it was sent already."""

    hub: ClassVar[DatasetHub]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.hub
        self.credentials = self.headers.get("Authorization", "").removeprefix("Bearer ")
        with hub.lock:
            hub.requests.append((self.command, self.path, self.credentials in hub.accounts))
            hook = self._taken(hub.hooks)
            refusal = self._taken(hub.refusals)
        if hook:
            hook()
        body = self._body()
        if body is None:
            return None
        if refusal:
            return self._refuse(refusal)
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        path = unquote(address.path)
        with hub.lock:
            for pattern, method in _ROUTES:
                found = re.fullmatch(pattern, path)
                if found:
                    answer = method(self, body, *found.groups())
                    lost = [way for way in hub.lost if way[0] == self.command and way[1] in path]
                    if lost:
                        hub.lost.remove(lost[0])
                        self._reset()
                    elif isinstance(answer, Refusal):
                        self._refuse(answer)
                    elif answer is not None:
                        self._say(200, json.dumps(answer).encode())
                    return None
        return self._refuse(Refusal(404, "no such page"))

    def _taken(self, waiting: list[tuple[str, str, Any]]) -> Any:
        for item in waiting:
            if item[0] == self.command and item[1] in self.path:
                waiting.remove(item)
                return item[2]
        return None

    def _body(self) -> bytes | None:
        """Read what came along; None where the connection was cut on purpose."""
        storage = re.match("/storage/(put|part|v1/xorbs)/", self.path)
        cut = next((cut for cut in self.hub.cuts if storage and self.command == cut[0]), None)
        if cut:
            self.hub.cuts.remove(cut)
            self.rfile.read(cut[1])
            self._reset()
            return None
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _reset(self) -> None:
        """Close the connection without a word; a linger of zero seconds sends RST."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, refusal: Refusal) -> None:
        message = refusal.message + (f" {self.credentials}" if self.hub.echo else "")
        headers = dict(refusal.headers) | {"X-Error-Message": message}
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        self._say(refusal.status, json.dumps({"error": message}).encode(), **headers)

    def _account(self) -> str | None:
        return self.hub.accounts.get(self.credentials)

    def _owns(self, name: str) -> bool:
        account = self._account()
        return account is not None and name.split("/")[0] in (account, *self.hub.orgs.get(account, []))

    def _repo(self, name: str, *, write: bool = False) -> Repo | Refusal:
        """The repository, or what the Hub says to those who may not see or change it."""
        repo, account = self.hub.repos.get(name), self._account()
        if self.credentials and account is None:
            return Refusal(401, "Invalid credentials in Authorization header")
        hidden = repo is None or (
            repo.private and not self._owns(name) and account not in repo.readers | repo.writers
        )
        if repo is None or hidden:
            known = Refusal(404, "Repository not found", "RepoNotFound")
            return known if account else Refusal(401, "Invalid username or password.")
        if write and self.credentials in self.hub.read_only:
            return Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
        if write and not self._owns(name) and account not in repo.writers:
            return Refusal(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo

    def _tree(self, name: str, revision: str) -> tuple[str, Tree] | Refusal:
        repo = self._repo(name)
        if isinstance(repo, Refusal):
            return repo
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            return Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, repo.commits[commit]

    def whoami(self, body: bytes) -> Any:
        account = self._account()
        if account is None:
            return Refusal(401, "Invalid credentials in Authorization header")
        return {"name": account, "orgs": [{"name": name} for name in self.hub.orgs.get(account, [])]}

    def info(self, body: bytes, name: str, revision: str | None) -> Any:
        found = self._tree(name, revision or "main")
        if isinstance(found, Refusal):
            return found
        told = {"id": name, "sha": found[0], "private": self.hub.repos[name].private}
        if "expand" in self.query:
            return {key: value for key, value in told.items() if key in ["id", *self.query["expand"]]}
        return told | {"siblings": [{"rfilename": path} for path in found[1]]}

    def create(self, body: bytes) -> Any:
        asked = json.loads(body)
        account = self._account()
        name = f"{asked['organization'] or account}/{asked['name']}"
        if account is None:
            return Refusal(401, "Invalid username or password.")
        if self.credentials in self.hub.read_only or not self._owns(name):
            return Refusal(403, "You don't have the rights to create a dataset under this namespace")
        if name in self.hub.repos:
            return Refusal(409, "You already created this dataset repo")
        self.hub.add(name, private=asked.get("visibility") == "private")
        return {"url": f"{self.hub.url}/datasets/{name}"}

    def tree(self, body: bytes, name: str, revision: str, folder: str | None) -> Any:
        found = self._tree(name, revision)
        if isinstance(found, Refusal):
            return found
        prefix = f"{folder}/" if folder else ""
        below = {path: blob for path, blob in sorted(found[1].items()) if path.startswith(prefix)}
        if folder and not below:
            return Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        recursive = self.query["recursive"] == ["true"]
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in below.items():
            parents = path.removeprefix(prefix).split("/")[:-1]
            for depth in range(1, len(parents) + 1 if recursive else min(len(parents), 1) + 1):
                parent = prefix + "/".join(parents[:depth])
                entries[parent] = {"type": "directory", "path": parent, "oid": "0" * 40, "size": 0}
            if recursive or not parents:
                entries[path] = blob.entry(path)
        first = int(self.query.get("cursor", ["0"])[0])
        last = first + self.hub.page
        link = {}
        if last < len(entries):
            address = (
                f"{self.hub.url}{urlsplit(self.path).path}?recursive={str(recursive).lower()}&cursor={last}"
            )
            link = {"Link": f'<{address}>; rel="next"'}
        self._say(200, json.dumps(list(entries.values())[first:last]).encode(), **link)
        return None

    def paths_info(self, body: bytes, name: str, revision: str) -> Any:
        found = self._tree(name, revision)
        if isinstance(found, Refusal):
            return found
        return [found[1][path].entry(path) for path in parse_qs(body.decode())["paths"] if path in found[1]]

    def preupload(self, body: bytes, name: str, revision: str) -> Any:
        repo = self._repo(name, write=True)
        if isinstance(repo, Refusal):
            return repo
        there = repo.commits[repo.branches[revision]]
        told = []
        for asked in json.loads(body)["files"]:
            blob = there.get(asked["path"])
            large = asked["size"] >= LARGE
            oid = blob and (blob.sha256 if blob.large else blob.git)
            ignored = asked["path"] in self.hub.ignored
            told.append(
                {
                    "path": asked["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": ignored,
                    "oid": oid,
                }
            )
        return {"files": told}

    def commit(self, body: bytes, name: str, branch: str) -> Any:
        repo = self._repo(name, write=True)
        if isinstance(repo, Refusal):
            return repo
        head, *operations = (json.loads(line) for line in body.splitlines())
        if head["value"].get("parentCommit", repo.branches[branch]) != repo.branches[branch]:
            return Refusal(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(repo.commits[repo.branches[branch]])
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                tree[value["path"]] = Blob(self.hub.spoil(base64.b64decode(value["content"])), False)
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return Refusal(400, "LFS pointer pointed to a file that does not exist")
                tree[value["path"]] = Blob(self.hub.objects[value["oid"]], True)
            elif tree.pop(value["path"], None) is None:
                return Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        commit = repo.commit(tree, branch)
        return {"commitUrl": f"{self.hub.url}/datasets/{name}/commit/{commit}", "commitOid": commit}

    def lfs_batch(self, body: bytes, name: str) -> Any:
        repo = self._repo(name, write=True)
        if isinstance(repo, Refusal):
            return repo
        told = []
        for asked in json.loads(body)["objects"]:
            upload: dict[str, Any] = {"href": f"{self.hub.storage}/put/{asked['oid']}"}
            if self.hub.part and asked["size"] > self.hub.part:
                count = -(-asked["size"] // self.hub.part)
                addresses = {
                    str(n): f"{self.hub.storage}/part/{asked['oid']}/{n}" for n in range(1, count + 1)
                }
                upload["header"] = {"chunk_size": str(self.hub.part), **addresses}
                upload["href"] = f"{self.hub.url}/complete"
            verify = {"href": f"{self.hub.url}/verify"}
            actions = {"upload": upload, "verify": verify}
            known = asked["oid"] in self.hub.objects
            told.append(asked if known else asked | {"actions": actions})
        return {"transfer": "multipart" if self.hub.part else "basic", "objects": told}

    def lfs_put(self, body: bytes, oid: str) -> Any:
        self.hub.objects[oid] = self.hub.spoil(body)
        return self._say(200)

    def lfs_part(self, body: bytes, oid: str, number: str) -> Any:
        self.hub.parts[oid, int(number)] = body
        return self._say(200, ETag=f'"{number}"')

    def lfs_complete(self, body: bytes) -> Any:
        asked = json.loads(body)
        numbers = [part["partNumber"] for part in asked["parts"]]
        whole = b"".join(self.hub.parts[asked["oid"], number] for number in numbers)
        self.hub.objects[asked["oid"]] = self.hub.spoil(whole)
        return {}

    def lfs_verify(self, body: bytes) -> Any:
        return {} if json.loads(body)["oid"] in self.hub.objects else Refusal(404, "Object not found")

    def xet_token(self, body: bytes, name: str) -> Any:
        repo = self._repo(name, write=True)
        if isinstance(repo, Refusal):
            return repo
        return {"accessToken": "for-the-storage-only", "exp": 2**33, "casUrl": self.hub.storage}

    def xet_xorb(self, body: bytes, name: str) -> Any:
        self.hub.xet.put_xorb(name, body)
        return {"was_inserted": True}

    def xet_shard(self, body: bytes) -> Any:
        for sha256, content in self.hub.xet.files_of_shard(body):
            self.hub.objects[sha256] = self.hub.spoil(content)
        return {"result": 1}

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> Any:
        found = self._tree(name, revision)
        if isinstance(found, Refusal):
            return found
        repo = self.hub.repos[name]
        if repo.gated and not self._owns(name) and self._account() not in repo.readers:
            words = f"Access to dataset {name} is restricted and you are not in the authorized list."
            return Refusal(403 if self.credentials else 401, words, "GatedRepo")
        blob = found[1].get(path)
        if blob is None:
            return Refusal(404, "Entry not found", "EntryNotFound")
        if not blob.large:
            return self._content(blob.content)
        key = f"{name}/{found[0]}/{path}"
        location = f"{self.hub.storage}/get/{key}"
        return self._say(302, Location=location, X_Repo_Commit=found[0], X_Linked_ETag=f'"{blob.sha256}"')

    def lfs_get(self, body: bytes, name: str, commit: str, path: str) -> Any:
        return self._content(self.hub.repos[name].commits[commit][path].content)

    def _content(self, content: bytes) -> None:
        wanted = self.headers.get("Range")
        self.hub.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and not self.hub.rangeless else 0
        if start and start >= len(content):
            return self._say(416, Content_Range=f"bytes */{len(content)}")
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut = next((cut for cut in self.hub.cuts if cut[0] == "GET"), None)
        if cut:
            self.hub.cuts.remove(cut)
            self.wfile.write(content[start : start + cut[1]])
            self.close_connection = True
        elif self.command == "GET":
            self.wfile.write(content[start:])
        return None


_NAME = r"([^/]+/[^/]+)"
_ROUTES: list[tuple[str, Callable[..., Any]]] = [
    ("/api/whoami-v2", Answers.whoami),
    ("/api/repos/create", Answers.create),
    (rf"/api/datasets/{_NAME}(?:/revision/(.+))?", Answers.info),
    (rf"/api/datasets/{_NAME}/tree/([^/]+)(?:/(.+))?", Answers.tree),
    (rf"/api/datasets/{_NAME}/paths-info/(.+)", Answers.paths_info),
    (rf"/api/datasets/{_NAME}/preupload/(.+)", Answers.preupload),
    (rf"/api/datasets/{_NAME}/commit/(.+)", Answers.commit),
    (rf"/api/datasets/{_NAME}/xet-write-token/.+", Answers.xet_token),
    (rf"/datasets/{_NAME}\.git/info/lfs/objects/batch", Answers.lfs_batch),
    (rf"/datasets/{_NAME}/resolve/([^/]+)/(.+)", Answers.resolve),
    ("/storage/put/(.+)", Answers.lfs_put),
    ("/storage/part/(.+)/(.+)", Answers.lfs_part),
    (rf"/storage/get/{_NAME}/([^/]+)/(.+)", Answers.lfs_get),
    ("/storage/v1/xorbs/default/(.+)", Answers.xet_xorb),
    ("/storage/v1/shards", Answers.xet_shard),
    ("/complete", Answers.lfs_complete),
    ("/verify", Answers.lfs_verify),
]
