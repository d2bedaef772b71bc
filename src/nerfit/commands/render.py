"""nerfit render: pictures and videos of a run along a camera path, from this process or from many on Ray."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nerfit.commands.cluster import Stop, on_ray
from nerfit.commands.render_options import Options
from nerfit.errors import ConfigError
from nerfit.progress import say, tick


def run(options: Options, on_workers: Callable[..., Iterator[tuple[int, Any]]] = on_ray) -> dict[str, Any]:
    """Draw a camera path of a run into its renders folder; the folder, the videos and the exit code.

    With ``workers`` that many processes draw it in pieces (``on_workers`` runs them, as `on_ray` does). The same command finishes
    what a killed or stopped one left undone.
    """
    from nerfit.commands.render_film import Film, draw_in_pieces, unfinished
    from nerfit.outputs.pictures.render_path import draw_share
    from nerfit.runs import new_folder
    from nerfit.training import distributed

    if options.workers < 0:
        raise ConfigError(f"--workers must not be negative, but is {options.workers}.")
    film = Film.planned(options)
    count = len(film.frames.cameras)
    out = options.out or options.run / "renders" / Path(film.kind).stem
    if options.workers:
        folder = unfinished(out, film, options.out is None)
        stop = Stop()
        draw_in_pieces(film, options, folder, on_workers, stop)
        if stop.interrupted is not None:
            say(f"stopped: {count - len(film.frames.missing(folder))} of {count} frames are in {folder}; the same command goes on.")
            return {"folder": str(folder), "videos": [], "frames": count, "exit_code": 128 + stop.interrupted}
    else:
        folder = distributed.broadcast_result(lambda: new_folder(out, numbered=options.out is None))
        draw_share(film.frames, folder, lambda done, of: tick(done, of, "frames"))
    videos = film.frames.write_videos(folder, options.fps, options.side_by_side, options.video) if distributed.is_main() else []
    return {"folder": str(folder), "videos": [str(v) for v in videos], "frames": count, "exit_code": 0}


def text(answer: dict[str, Any]) -> str:
    """The files for a reader."""
    return "\n".join(answer["videos"] or [answer["folder"]])
