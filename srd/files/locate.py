"""Where things are: weights in a file, a run's folder or the Hugging Face Hub; the project's recipes."""

from __future__ import annotations

import os
import re
import socket
import urllib.request
from contextlib import suppress
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

from srd.errors import UserError, nearest

# The folder of this package. It has the project's configs/, and in a checkout a link to ckpts/.
PACKAGE = Path(str(resources.files("srd")))

HUB = "hf-hub:"
HUB_NAME = re.compile(r"hf-hub:([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/([\w./-]+))?")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# What a run leaves (`srd.run.folder.RunFolder`), the best student first.
RUN_FILES = ("student.safetensors", "checkpoints/best.pth", "checkpoints/last.pth")


def locate(name: str | Path) -> Path:
    """The file that a name leads to.

    Args:
        name: a file, a run's folder (its best student is taken), or
            `hf-hub:user/repository[@revision][/file]`, which is downloaded once.

    Raises:
        UserError: there is nothing.
    """
    if str(name).startswith(HUB):
        return _from_hub(str(name))
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):  # unlike pathlib's, this never raises, whatever the name
        checkpoint = next((path / file for file in RUN_FILES if (path / file).is_file()), None)
        if checkpoint is None:
            raise UserError(
                f"no checkpoint at {path}: a folder, but not a run's (looked for "
                f"{', '.join(RUN_FILES)}); give a file"
            )
        return checkpoint
    if not os.path.isfile(path):
        raise UserError(f"no checkpoint at {path}")
    return path


def _from_hub(name: str) -> Path:
    # imported late: it takes a second, and few loads need it
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    parts = HUB_NAME.fullmatch(name)
    if parts is None:
        raise UserError(f"{name}: expected {HUB}user/repository[@revision][/file]")
    repository, revision, file = parts.groups()
    # the client would try again for half a minute where there is no network
    offline = HF_HUB_OFFLINE or not answers(ENDPOINT)
    files = (file,) if file else HUB_FILES
    for filename in files:
        try:
            return Path(
                hf_hub_download(repository, filename, revision=revision, local_files_only=offline)
            )
        except LocalEntryNotFoundError:
            continue  # an EntryNotFoundError too
        except EntryNotFoundError:
            continue
        except Exception as error:  # the client's and its HTTP library's have no common class
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            raise UserError(f"{name}: the Hub did not give it ({reason})") from None
    if offline:
        raise UserError(
            f"{name}: {ENDPOINT} cannot be reached and no copy is kept here; download the file "
            "elsewhere and give its path"
        )
    raise UserError(f"{name}: the repository has no {' nor '.join(files)}; name a file of it")


def answers(endpoint: str, seconds: float = 5.0) -> bool:
    """Whether somebody listens there; behind a proxy, assumed."""
    address = urlsplit(endpoint)
    if address.scheme in urllib.request.getproxies():
        return True
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=seconds).close()
    except OSError:
        return False
    return True


def recipe_file(name: str | Path) -> Path:
    """A YAML file by name: here, else the project's own, such as `configs/digits/deit.yaml`.

    Raises:
        UserError: neither (with the nearest of the project's own).
    """
    path = Path(name)
    with suppress(OSError, RuntimeError):  # a name too long for a file; nobody's home
        path = path.expanduser()
        if path.exists():
            return path
        if (PACKAGE / path).is_file():
            return PACKAGE / path
    own = [file.relative_to(PACKAGE).as_posix() for file in (PACKAGE / "configs").rglob("*.yaml")]
    raise UserError(
        f"cannot read the configuration {str(name)[:200]}: no such file{nearest(str(name), own)}"
    )
