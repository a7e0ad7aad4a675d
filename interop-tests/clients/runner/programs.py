"""The client programs: how each is built and called, and which scenario list it must answer.

All programs share one contract (README.md): addresses and options by environment, one line a scenario on stdout.
"""

import dataclasses
import os
import pathlib
import subprocess

from .paths import CACHE, CLIENTS


class BuildError(Exception):
    """A client program can not be built; the text is fit for output."""


@dataclasses.dataclass
class Program:
    name: str
    scenarios: str  # a file below scenarios/
    world: str  # whose control broker it runs against: "amqp", "rocketmq" or "across" (none)
    sources: list  # directories that go into the build
    command: list

    def build(self):
        pass


class Python(Program):
    def build(self):
        if not pathlib.Path(self.command[0]).exists():
            raise BuildError(f"{self.name}: {self.command[0]} does not exist, run setup")


class Java(Program):
    """javac over one or more source directories; Maven only fetched the jars. Deprecated calls are welcome: programs in
    the field make them."""

    def build(self):
        jars, classes = CACHE / "jars" / self.name, CACHE / "classes" / self.name
        if not jars.exists():
            raise BuildError(f"{self.name}: {jars} does not exist, run setup")
        files = sorted(file for source in self.sources for file in (CLIENTS / source).glob("*.java"))
        stamp = classes / ".built"
        if stamp.exists() and all(file.stat().st_mtime < stamp.stat().st_mtime for file in files):
            return
        classes.mkdir(parents=True, exist_ok=True)
        _build(self.name, ["javac", "-Xlint:all,-classfile,-processing,-deprecation", "-Werror", "--release", "17", "-cp",
                           f"{jars}/*", "-d", classes, *files])
        stamp.touch()


class Node(Program):
    """The package lies below the cache, where NODE_PATH finds it: nothing is installed beside the sources."""

    def build(self):
        if not (CACHE / self.name / "node_modules").exists():
            raise BuildError(f"{self.name}: {CACHE / self.name} does not exist, run setup")


class Cargo(Program):
    def build(self):
        _build(self.name, ["cargo", "build", "--quiet", "--locked", "--target-dir", CACHE / "target",
                           "--manifest-path", CLIENTS / self.name / "Cargo.toml"])


class C(Program):
    """All sources in one go, with the system's library."""

    def build(self):
        _build(self.name, ["cc", "-std=gnu11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", "-o", CACHE / self.name,
                           *sorted((CLIENTS / self.name).glob("*.c")), "-lrabbitmq"])


class Go(Program):
    def build(self):
        _build(self.name, ["sh", "-c", f"cd {CLIENTS / self.name} && go build -buildvcs=false -o {CACHE / self.name} ."])


def _build(name, command):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise BuildError(f"{name} does not build:\n{done.stdout}")


def _java(name, scenarios, world, sources, main):
    # The RocketMQ client writes its log and its broadcasting offsets below user.home.
    command = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", f"-Duser.home={CACHE / 'home'}",
               "-cp", os.pathsep.join([str(CACHE / "classes" / name), str(CACHE / "jars" / name / "*")]), main]
    return Java(name, scenarios, world, sources, command)


def all_programs():
    programs = [
        Python("pika", "amqp", "amqp", ["pika"], [str(CACHE / "python/bin/python"), str(CLIENTS / "pika/main.py")]),
        Python("accounts", "accounts", "amqp", ["pika"], [str(CACHE / "python/bin/python"), str(CLIENTS / "pika/accounts.py")]),
        Python("arguments", "arguments", "amqp", ["pika"], [str(CACHE / "python/bin/python"), str(CLIENTS / "pika/arguments.py")]),
        _java("rabbitmq-java", "amqp", "amqp", ["java-kit", "rabbitmq-java"], "interop.rabbitmq.Main"),
        Cargo("lapin", "amqp", "amqp", ["lapin"], [str(CACHE / "target/debug/interop-lapin")]),
        Go("amqp091-go", "amqp", "amqp", ["amqp091-go"], [str(CACHE / "amqp091-go")]),
        C("librabbitmq", "amqp", "amqp", ["librabbitmq"], [str(CACHE / "librabbitmq")]),
        Program("bunny", "amqp", "amqp", ["bunny"], ["ruby", str(CLIENTS / "bunny/main.rb")]),
        Node("amqplib", "amqp", "amqp", ["amqplib"],
             ["env", f"NODE_PATH={CACHE / 'amqplib/node_modules'}", "node", str(CLIENTS / "amqplib/main.js")]),
    ]
    for version in (CLIENTS / "rocketmq-java/versions").read_text().split():
        # The two lines differ in a few package names and signatures only: one small file each.
        sources = ["java-kit", "rocketmq-java", f"rocketmq-java/v{version.split('.')[0]}"]
        programs.append(_java(f"rocketmq-java-{version}", "rocketmq", "rocketmq", sources, "interop.rocketmq.Main"))
    programs.append(Python("librocketmq", "rocketmq", "rocketmq", ["librocketmq"],
                           [str(CACHE / "librocketmq/bin/python"), str(CLIENTS / "librocketmq/main.py")]))
    programs.append(Go("rocketmq-go", "rocketmq", "rocketmq", ["rocketmq-go"], [str(CACHE / "rocketmq-go")]))
    # Built from the sources of both clients: it shares their helpers.
    sources = ["java-kit", "rabbitmq-java", "rocketmq-java", "rocketmq-java/v5", "across"]
    programs.append(_java("across", "across", "across", sources, "interop.across.Main"))
    return programs


def scenario_names(scenarios):
    """The names of a list, in order; the rest of each line says what the scenario proves."""
    lines = (CLIENTS / "scenarios" / scenarios).read_text().splitlines()
    return [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
