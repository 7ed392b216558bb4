"""Publishing an exported folder on the Hugging Face Hub, for those who ask for it."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from srd.errors import UserError


def check_hub(repository: str) -> None:
    """Raise a UserError unless `repository` is USER/NAME and someone is logged in."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"--push-to-hub {repository}: expected USER/NAME")
    if not huggingface_hub.get_token():
        raise UserError(
            "--push-to-hub needs a token of the Hugging Face Hub that may write: `hf auth login`, "
            "or set HF_TOKEN"
        )


def push(folder: Path, repository: str) -> str:
    """Upload an exported folder, making the repository where there is none; returns its address.

    Raises:
        UserError: no network, or the Hub refuses; the folder stays where it is.
    """
    hub = huggingface_hub.HfApi()
    try:
        address = hub.create_repo(repository, exist_ok=True)
        hub.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=f"Add {folder.name}"
        )
    except Exception as error:  # the client's, and those of the HTTP library that it happens to use
        refused = isinstance(error, HfHubHTTPError) and error.response is not None
        what = "refused" if refused else "did not answer"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise UserError(
            f"the Hugging Face Hub {what} ({reason}); {folder} is written, push it again later"
        ) from None
    return str(address)
