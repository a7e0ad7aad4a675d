"""What run-clients and run-control have in common: options, building, running, the exit status."""

import argparse
import contextlib
import fnmatch
import pathlib
import shutil
import signal
import sys
import tempfile
import time

from . import hook
from .brokers import BrokerError
from .programs import BuildError, all_programs
from .run import print_table, run_program


def parser(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--clients", default="*", metavar="NAMES", help="comma separated, * as wildcard: " + ", ".join(
        program.name for program in all_programs()))
    parser.add_argument("--only", default="", metavar="SCENARIOS", help="comma separated, * as wildcard")
    parser.add_argument("--minutes", type=float, default=45, help="time limit of the whole run (default %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the directory with data and logs")
    parser.add_argument("--build-only", action="store_true", help="build the client programs and end")
    return parser


def chosen(options, parser):
    wanted = options.clients.split(",")
    programs = [p for p in all_programs() if any(fnmatch.fnmatch(p.name, pattern) for pattern in wanted)]
    if not programs:
        parser.error(f"no client is called {options.clients}")
    return programs


def build(programs):
    for program in programs:
        try:
            program.build()
        except BuildError as error:
            sys.exit(f"FAILED: {error}")


@contextlib.contextmanager
def work_directory(options):
    # A terminated run must still end its brokers: turn SIGTERM into an exception that unwinds the stack.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    directory = pathlib.Path(tempfile.mkdtemp(prefix="dassie-interop-"))
    try:
        yield directory
    except BaseException:
        options.keep = True
        raise
    finally:
        if options.keep:
            print(f"data and logs are kept in {directory}")
        else:
            shutil.rmtree(directory)


def parse(parser):
    options = parser.parse_args()
    options.deadline = time.monotonic() + 60 * options.minutes
    return options


def run_all(programs, broker, target, options, directory, restart=None):
    """Starts the broker, runs the programs one after the other, stops the broker.

    `restart` is a hook command given from outside; a broker of our own gets the runner's hook."""
    only = [name for name in options.only.split(",") if name]
    outcomes = []
    with contextlib.ExitStack() as stack:
        environment = dict(broker.waits)
        if broker.amqp:
            environment["INTEROP_AMQP"] = broker.amqp
        if broker.name_server:
            environment["INTEROP_NAME_SERVER"] = broker.name_server
        if broker.accounts:
            environment["INTEROP_ACCOUNTS"] = "yes"
        if broker.authority:
            environment["INTEROP_TLS_CA"] = str(broker.authority)
        stack.callback(broker.stop)
        broker.start()
        if broker.restart:
            restart = stack.enter_context(hook.serving(broker, directory))
        if restart:
            environment["DASSIE_RESTART"] = restart
        for program in programs:
            log = directory / f"{program.name}.log"
            outcomes.append(run_program(program, broker, environment, only, target, log, options.deadline))
    return [outcome for outcome in outcomes if outcome.expected]


def finish(outcomes, options):
    """Prints the table and returns the exit status; after a failure the logs are kept."""
    if not outcomes:
        sys.exit("FAILED: no scenario ran")
    passed = print_table(outcomes)
    options.keep |= not passed
    return 0 if passed else 1


def guarded(main):
    """Runs main; a broker that fails to start is one clear line."""
    try:
        sys.exit(main())
    except BrokerError as error:
        sys.exit(f"FAILED: {error}")
    except KeyboardInterrupt:
        sys.exit("FAILED: interrupted")
