"""The hook: lets a scenario restart the broker that the runner started, or raise its memory alarm.

The runner serves a Unix socket; the command in DASSIE_RESTART, called with a word of WORDS, sends it and
returns 0 once the broker is ready again, or has raised (`alarm`) or ended (`calm`) its memory alarm. Client programs know the command only, never the broker's pid, and a user
with a broker of his own can put any command of the same contract in its place.
"""

import contextlib
import pathlib
import shlex
import signal
import socket
import sys
import threading

WORDS = {
    "term": lambda broker: broker.restart(signal.SIGTERM),
    "kill": lambda broker: broker.restart(signal.SIGKILL),
    "alarm": lambda broker: broker.alarm(True),
    "calm": lambda broker: broker.alarm(False),
}


@contextlib.contextmanager
def serving(broker, directory):
    """Yields the hook command for `broker`."""
    path = pathlib.Path(directory) / "restart.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        threading.Thread(target=_serve, args=(listener, broker), daemon=True).start()
        try:
            yield shlex.join([sys.executable, str(pathlib.Path(__file__).resolve()), str(path)])
        finally:
            path.unlink()


def _serve(listener, broker):
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # the runner is done
        with connection:
            try:
                WORDS[connection.recv(16).decode()](broker)
                connection.sendall(b"ready")
            except Exception as error:  # whatever it is, the scenario must hear of it
                connection.sendall(f"{type(error).__name__}: {error}".encode())


def main():
    if len(sys.argv) != 3 or sys.argv[2] not in WORDS:
        sys.exit("usage: hook.py SOCKET " + "|".join(WORDS) + "")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(sys.argv[1])
        connection.sendall(sys.argv[2].encode())
        answer = connection.recv(4096).decode()
    if answer != "ready":
        sys.exit(f"the hook failed: {answer or 'the runner went away'}")


if __name__ == "__main__":
    main()
