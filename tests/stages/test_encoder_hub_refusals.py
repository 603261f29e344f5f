"""What the Hub says to those it refuses, told apart and explained, and never a token in any of it."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from encoder_rows import timm_model, tiny, write_row
from hub_server import Gate, HubServer, files_with, use_hub
from huggingface_hub import constants
from safetensors.torch import save

from stages.encoders import RefusedByHub, hub_refusal, load_encoder

REPO = "someone/tiny-vit"
PAGE = f"https://huggingface.co/{REPO}"
SECRET = "hf_thisTokenMustNeverBeSeenAnywhere"
STATE = timm_model(tiny()).state_dict()
ROW = tiny(hub_repo=REPO, revision="main", gated=True)
CLOSED = Gate(
    401,
    "GatedRepo",
    f"Access to model {REPO} is restricted. You must have access to it and be authenticated to access it. "
    "Please log in.",
    SECRET,
)
# as recorded from huggingface.co; only the name of the repository is ours
ANSWERS = [
    (
        Gate(
            403,
            "GatedRepo",
            f"Access to model {REPO} is restricted and you are not in the authorized list. Visit {PAGE} to ask for "
            "access.",
        ),
        "access not requested",
        "has not asked for access",
        "accept the terms there",
    ),
    (
        Gate(
            403,
            "GatedRepo",
            f"Your request to access model {REPO} is awaiting a review from the repo authors.",
        ),
        "access not yet granted",
        "have not granted it yet",
        "Wait for their answer",
    ),
    (
        Gate(
            403, "GatedRepo", f"Your request to access model {REPO} has been rejected by the repo's authors."
        ),
        "access rejected",
        "rejected this account's request",
        f"{PAGE}/discussions",
    ),
    (
        Gate(
            403,
            "GatedRepo",
            f"Your request to access model {REPO} has been reset by the repo's authors. Visit {PAGE} to submit a new "
            "request.",
        ),
        "access not requested",
        "has not asked for access",
        "accept the terms there",
    ),
    (
        Gate(
            403,
            None,
            "Please enable access to public gated repositories in your fine-grained token settings to view this "
            "repository.",
        ),
        "token lacks the scope",
        "may not read gated repositories",
        "Read access to contents of all public gated repos you can access",
    ),
    (
        Gate(401, None, "Invalid credentials in Authorization header"),
        "token not valid",
        "did not accept the Hugging Face token",
        "https://huggingface.co/settings/tokens",
    ),
    (
        Gate(401, None, "Invalid username or password."),
        "token not valid",
        "did not accept the Hugging Face token",
        "https://huggingface.co/settings/tokens",
    ),
    (
        Gate(401, None, 'User Access Token "cluster" is expired'),
        "token expired",
        "has expired",
        "https://huggingface.co/settings/tokens",
    ),
    (Gate(403, None, "Because we say so."), "forbidden", "may not read the weights", "token's rights"),
]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer({(REPO, "model.safetensors"): save(STATE)}) as server:
        use_hub(server, monkeypatch, tmp_path)
        yield server


def refusal(folder: Path, fields: dict[str, Any] = ROW) -> RefusedByHub:
    """What loading ends with, which is also what asking beforehand tells; free of the token, its traces included."""
    row = write_row(folder, fields)
    with pytest.raises(RefusedByHub) as caught:
        load_encoder(row, tile_px=32)
    error = caught.value
    beforehand = hub_refusal(row)
    assert isinstance(beforehand, RefusedByHub)
    assert (beforehand.reason, str(beforehand)) == (error.reason, str(error))
    assert error.exit_status == 3
    assert SECRET not in "".join(traceback.format_exception(error)) + repr(error.__context__)
    return error


@pytest.mark.parametrize(("gate", "reason", "what", "remedy"), ANSWERS)
def test_each_refusal_of_a_token_is_told_apart_with_its_next_step(
    tmp_path: Path,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    gate: Gate,
    reason: str,
    what: str,
    remedy: str,
) -> None:
    caplog.set_level(logging.INFO)
    hub.gates[REPO], hub.echo = gate, True
    monkeypatch.setenv("HF_TOKEN", SECRET)
    error = refusal(tmp_path)
    assert error.reason == reason
    assert what in error.what
    assert error.what.endswith(f"({gate.status})")
    assert remedy in str(error.remedy)
    assert PAGE in str(error)
    assert "--weights" in str(error.remedy)
    assert all(with_token for method, path, with_token in hub.requests if "resolve" in path)
    assert SECRET not in "".join(capfd.readouterr()) + caplog.text
    assert not files_with(tmp_path, SECRET)


def test_a_gated_repository_without_a_token_names_the_page_and_the_login(
    tmp_path: Path, hub: HubServer
) -> None:
    hub.gates[REPO] = CLOSED
    error = refusal(tmp_path)
    assert error.reason == "no token"
    for part in (
        "no Hugging Face token was found (401)",
        f"Ask for access at {PAGE}",
        "HF_TOKEN",
        "hf auth login",
    ):
        assert part in str(error)


def test_without_a_token_a_private_repository_is_not_called_gated(tmp_path: Path, hub: HubServer) -> None:
    hub.files.clear()
    error = refusal(tmp_path)
    assert error.reason == "private or missing"
    assert "it is private, or its name is wrong (401)" in error.what


def test_the_token_opens_a_gated_repository_and_goes_nowhere_else(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gates[REPO] = CLOSED
    monkeypatch.setenv("HF_TOKEN", SECRET)
    encoder = load_encoder(write_row(tmp_path, ROW), tile_px=32)
    assert SECRET not in str(encoder.identity) + str(encoder.provenance)
    assert not files_with(tmp_path, SECRET)
    assert {path.split("/")[1]: token for _, path, token in hub.requests if token} == {"someone": True}


def test_a_token_in_typographic_quotes_is_told_so(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", f"“{SECRET}”")
    error = refusal(tmp_path)
    assert error.reason == "token not valid"
    assert "typographic quotes" in str(error.remedy)
    assert hub.requests == []


def test_a_server_that_fails_or_is_gone_is_no_access(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.gates[REPO] = Gate(503, None, "down for maintenance")
    error = refusal(tmp_path)
    assert error.reason == "failed"
    assert "(503)" in error.what
    nobody = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nobody)
    error = refusal(tmp_path)
    assert error.reason == "unreachable"
    assert "cannot be reached" in error.what
    assert "--weights" in str(error.remedy)


def test_offline_is_a_reason_of_its_own(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refusal(tmp_path).reason == "offline"
    assert hub.requests == []
