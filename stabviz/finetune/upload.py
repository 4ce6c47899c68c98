"""`--push-to-hub`: the best weights and their card to the Hugging Face hub, tried before training begins."""

from pathlib import Path

from huggingface_hub import HfApi

from stabviz.models.hub import why_unreachable


def check_upload(repo: str) -> None:
    """Make sure that the hub answers and that this repository may be written; make it, private, if it is new.

    Raises: ValueError in one line
    """
    if problem := why_unreachable():
        raise ValueError(
            f"finetune: push_to_hub must be left out where the hub cannot be reached ({problem}); "
            f"got {repo!r}"
        )
    try:
        HfApi().whoami()
        HfApi().create_repo(repo, private=True, exist_ok=True)  # a name that may not be written shows now
    except Exception as error:  # not logged in, no such owner, no right to write: a class each
        raise ValueError(
            f"finetune: push_to_hub must be a repository that you may write; got {repo!r} "
            f"({_first_line(error)}). Log in first: hf auth login"
        ) from error


def upload(folder: Path, repo: str) -> str:
    """Put a folder of weights and card in a repository of the hub; return its address.

    Raises: ValueError in one line that says what to do; the folder is as it was
    """
    try:
        return str(HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message="By stabviz"))
    except Exception as error:  # what it raises depends on the network and on the hub
        raise ValueError(
            f"finetune: {folder} is whole, but could not be pushed to {repo!r} ({_first_line(error)}). "
            f"Push it later: hf upload {repo} {folder}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
