"""Starting, restarting and stopping the brokers under test.

Owns the processes it starts and ends them by pid only. Every broker lives in its own directory and listens on
loopback ports chosen at run time. It knows how to ask a broker whether it is ready, not what clients do with it.
"""

import json
import os
import pathlib
import random
import signal
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request

from .paths import CACHE, CLIENTS, REPOSITORY

# Users, vhosts, permissions and a few objects, in the form that RabbitMQ exports: for every AMQP broker started here.
DEFINITIONS = CLIENTS / "definitions.json"
START_SECONDS = 120
STOP_SECONDS = 60


class BrokerError(Exception):
    """A broker did not start or stop; the text is fit for one line of output."""


def free_port(offsets=(0,)):
    """A port P for which P + offset is free for every offset. Below the ephemeral range, so that no client's own
    socket takes it while the broker restarts."""
    for _ in range(200):
        port = random.randrange(20000, 32000)
        if all(_is_free(port + offset) for offset in offsets):
            return port
    raise BrokerError("no free port between 20000 and 32000")


def _is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


# How long things wait that come later: delay levels in seconds, the first question about a transaction and the next ones.
# Short, and the same for every broker of ours, so that no scenario waits for long. Clients learn of it by the environment; for a
# broker that runs already they believe in Apache's defaults.
DELAY_SECONDS = [1, 3, 4, 6] + [60 * minutes for minutes in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30, 60, 120)]
DELAY_LEVELS = " ".join(f"{seconds}s" for seconds in DELAY_SECONDS)
CHECK_SECONDS = (3, 5)
WAITS = {
    "INTEROP_DELAY_SECONDS": " ".join(map(str, DELAY_SECONDS)),
    "INTEROP_CHECK_SECONDS": " ".join(map(str, CHECK_SECONDS)),
}


class Process:
    """One child process whose output goes to a file."""

    def __init__(self, name, command, log, environment=None, directory=None):
        self.name, self.command, self.log = name, [str(part) for part in command], pathlib.Path(log)
        self.environment, self.directory, self.child = environment, directory, None

    def start(self):
        try:
            with open(self.log, "ab") as log:
                self.child = subprocess.Popen(
                    self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    env=self.environment, cwd=self.directory)
        except OSError as error:
            raise BrokerError(f"{self.name} can not be started: {error}") from error

    def wait_until(self, ready):
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if self.child.poll() is not None:
                raise BrokerError(f"{self.name} ended with {self.child.returncode} while starting: {self.last_line()}")
            if time.monotonic() > deadline:
                raise BrokerError(f"{self.name} is not ready after {START_SECONDS} s (log: {self.log})")
            time.sleep(0.05)

    def ended(self):
        """None while it runs or before it has run, else its exit status."""
        return self.child.poll() if self.child else None

    def stop(self, how=signal.SIGTERM):
        """Ends it and returns its exit status."""
        if self.child is None or self.child.poll() is not None:
            return self.ended()
        self.child.send_signal(how)
        try:
            return self.child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise BrokerError(f"{self.name} did not end within {STOP_SECONDS} s of signal {how}; killed") from None

    def last_line(self):
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"(nothing in {self.log})"


def tcp_answers(port, sends=b"", expects=b""):
    """True when something listens on the port and its first answer to `sends` begins with `expects`."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as probe:
            probe.sendall(sends)
            return not expects or probe.recv(len(expects)).startswith(expects)
    except OSError:
        return False


def topic_is_routed(port, topic):
    """Asks a RocketMQ name server for a topic's route (request 105)."""
    header = json.dumps({"code": 105, "language": "JAVA", "version": 0, "opaque": 1, "flag": 0,
                         "extFields": {"topic": topic}}).encode()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(struct.pack(">II", 4 + len(header), len(header)) + header)
            answer = connection.makefile("rb")
            _, length = struct.unpack(">II", answer.read(8))
            return json.loads(answer.read(length & 0xFFFFFF))["code"] == 0
    except (OSError, struct.error):
        return False


class Broker:
    """A broker that can be restarted on its own data. Subclasses set `amqp` and `name_server` (host:port or None)."""

    amqp = None
    name_server = None
    accounts = False  # whether it knows the users of DEFINITIONS
    authority = None  # the PEM file that clients must trust; None: plaintext
    waits = WAITS  # what clients are told of the waits that it was started with

    def start(self):
        raise NotImplementedError

    def stop(self):
        raise NotImplementedError

    def restart(self, how):
        raise NotImplementedError

    def alarm(self, raised):
        """Raises or ends the memory alarm."""
        raise NotImplementedError

    def complaint(self):
        """What is wrong with the broker itself, whatever the clients saw; None when nothing is."""
        return None


class RunningBroker(Broker):
    """Somebody else's broker: never started, stopped or restarted from here."""

    def __init__(self, amqp, name_server):
        self.amqp, self.name_server = amqp, name_server

    def start(self):
        pass

    def stop(self):
        pass

    restart = None
    waits = {}


def certificates(directory):
    """An authority and a certificate of it for loopback, made by openssl: ca.pem, server.pem, server.key."""
    directory.mkdir()
    new = ["openssl", "req", "-newkey", "rsa:2048", "-nodes"]
    extensions = directory / "extensions"
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for command in [
        [*new, "-x509", "-days", "30", "-subj", "/CN=interop authority", "-keyout", "ca.key", "-out", "ca.pem"],
        [*new, "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr"],
        ["openssl", "x509", "-req", "-days", "30", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
         "-CAcreateserial", "-extfile", extensions, "-out", "server.pem"],
    ]:
        done = subprocess.run(command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise BrokerError(f"openssl {command[1]} failed: {done.stderr.strip().splitlines()[-1:]}")
    return directory


# Who signs RocketMQ requests: definitions of RabbitMQ know no such secret.
SIGNER = """
[[users]]
name = "signer"
rocketmq_secret = "a secret of the signer"
permissions = [{ vhost = "/", configure = "-signed-", write = "-signed-", read = "^amq\\\\.rmq\\\\.(TBW102|interop-)" }]
"""


class Dassie(Broker):
    """With `tls`, both protocols over TLS only: what slips through in plaintext fails."""

    accounts = True

    def __init__(self, directory, tls=False):
        binary = pathlib.Path(os.environ.get("DASSIE_BIN", REPOSITORY / "target/release/dassie"))
        if not binary.exists():
            raise BrokerError(f"no broker to test: {binary} does not exist (cargo build --release, or set DASSIE_BIN)")
        amqp, name_server, self.http, metrics = (free_port() for _ in range(4))
        # The VIP port of RocketMQ clients is always the broker's port minus two.
        rocketmq = free_port((0, -2))
        self.amqp, self.name_server = f"127.0.0.1:{amqp}", f"127.0.0.1:{name_server}"
        self.rocketmq = f"127.0.0.1:{rocketmq}"
        settings = {
            "amqp.listen": self.amqp,
            "rocketmq.listen": f"127.0.0.1:{rocketmq}",
            "rocketmq.name_server_listen": self.name_server,
            "http.listen": f"127.0.0.1:{self.http}",
            "metrics.listen": f"127.0.0.1:{metrics}",
            "rocketmq.delay_levels": DELAY_LEVELS,
            "rocketmq.transaction_timeout": CHECK_SECONDS[0],
            "rocketmq.transaction_check_interval": CHECK_SECONDS[1],
            "definitions.file": DEFINITIONS,
        }
        if tls:
            made = certificates(directory / "certificates")
            self.authority = made / "ca.pem"
            settings |= {
                "amqp.listen": "",
                "tls.listen": self.amqp,
                "tls.certificate": made / "server.pem",
                "tls.key": made / "server.key",
                "rocketmq.tls": "enforcing",
            }
        self.limits = directory / "dassie.toml"
        self.limits.write_text(SIGNER)
        command = [binary, "--data-dir", directory / "data", "--config", self.limits]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        self.process = Process("dassie", command, directory / "dassie.log")

    def start(self):
        self.process.start()
        self.process.wait_until(self._ready)

    def _ready(self):
        return self._health() is not None

    def _health(self):
        """What it says when it is ready."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/health/ready", timeout=2) as answer:
                return answer.read().decode() if answer.status == 200 else None
        except (urllib.error.URLError, OSError):
            return None

    def stop(self):
        self._stop(signal.SIGTERM)

    def _stop(self, how):
        status = self.process.stop(how)
        if how == signal.SIGTERM and status not in (0, None):
            raise BrokerError(f"dassie ended with {status} after SIGTERM: {self.process.last_line()}")

    def restart(self, how):
        self._stop(how)
        self.start()

    def alarm(self, raised):
        self.limits.write_text(("memory_high_watermark = 0.0\n" if raised else "") + SIGNER)
        self.process.child.send_signal(signal.SIGHUP)
        self.process.wait_until(lambda: ("low on memory" in (self._health() or "")) == raised)

    def complaint(self):
        if self.process.ended() is not None:
            return f"it ended with {self.process.ended()}: {self.process.last_line()}"
        # A panic costs one connection only, so no client may have noticed.
        panics = [line for line in self.process.log.read_text(errors="replace").splitlines() if "panicked at" in line]
        return f"panics in its log: {panics[0]}" if panics else None


class RabbitMQ(Broker):
    """Debian's RabbitMQ, run from the tree that `setup --control` unpacked, with an epmd of its own; with `tls` over TLS only."""

    accounts = True

    def __init__(self, directory, tls=False):
        server = CACHE / "rabbitmq/sbin/rabbitmq-server"
        if not server.exists():
            raise BrokerError("RabbitMQ is not installed: run setup --control")
        self.port, distribution, epmd = free_port(), free_port(), free_port()
        self.amqp = f"127.0.0.1:{self.port}"
        directory.mkdir(parents=True)
        (directory / "enabled_plugins").write_text("[].\n")
        listener = f"listeners.tcp.default = 127.0.0.1:{self.port}\n"
        if tls:
            made = certificates(directory / "certificates")
            self.authority = made / "ca.pem"
            listener = (
                f"listeners.tcp = none\nlisteners.ssl.default = 127.0.0.1:{self.port}\n"
                f"ssl_options.cacertfile = {made / 'ca.pem'}\nssl_options.certfile = {made / 'server.pem'}\n"
                f"ssl_options.keyfile = {made / 'server.key'}\nssl_options.verify = verify_none\n")
        (directory / "rabbitmq.conf").write_text(f"{listener}load_definitions = {DEFINITIONS}\n")
        environment = dict(
            os.environ,
            HOME=str(directory),  # the Erlang cookie
            ERL_EPMD_PORT=str(epmd),
            ERL_EPMD_ADDRESS="127.0.0.1",
            RABBITMQ_NODENAME="interop@localhost",
            RABBITMQ_DIST_PORT=str(distribution),
            RABBITMQ_CONF_ENV_FILE=os.devnull,
            RABBITMQ_CONFIG_FILE=str(directory / "rabbitmq.conf"),
            RABBITMQ_ADVANCED_CONFIG_FILE=str(directory / "none.config"),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(directory / "enabled_plugins"),
            RABBITMQ_MNESIA_BASE=str(directory / "data"),
            RABBITMQ_LOG_BASE=str(directory / "log"),
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}",
            # Makes the start script become the Erlang machine, so that our child's pid is the broker.
            RUNNING_UNDER_SYSTEMD="true",
        )
        self.environment = environment
        self.epmd = Process("epmd", ["epmd", "-port", epmd], directory / "epmd.log", environment)
        self.server = Process("rabbitmq", [server], directory / "rabbitmq.log", environment)

    def start(self):
        if self.epmd.child is None:
            self.epmd.start()
        self.server.start()
        # The listener is RabbitMQ's last boot step; a frame of type method on channel 0 is its connection.start.
        said = () if self.authority else (b"AMQP\0\0\x09\x01", b"\1\0\0")
        self.server.wait_until(lambda: tcp_answers(self.port, *said))

    def stop(self):
        try:
            self.server.stop()
        finally:
            self.epmd.stop()

    def restart(self, how):
        if how == signal.SIGKILL:
            # RabbitMQ writes the names of young quorum queues out lazily; killed sooner, 3.10.8 never finds a leader
            # for them again. Nothing tells when it is done.
            time.sleep(2)
        self.server.stop(how)
        self.start()

    def alarm(self, raised):
        command = [CACHE / "rabbitmq/sbin/rabbitmqctl", "set_vm_memory_high_watermark", "0" if raised else "0.4"]
        done = subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise BrokerError(f"rabbitmqctl: {done.stderr.strip()}")


class RocketMQ(Broker):
    """Apache RocketMQ: a name server and one broker, with heaps fit for a small machine. `flush` is when a send counts as
    stored: ASYNC_FLUSH (Apache's default) or SYNC_FLUSH."""

    def __init__(self, directory, flush="ASYNC_FLUSH", heap="1g"):
        jars = CACHE / "jars/rocketmq-broker"
        if not jars.exists():
            raise BrokerError("Apache RocketMQ is not installed: run setup --control")
        self.name_server_port = free_port()
        self.broker_port = free_port((0, -2, 1))  # -2: VIP, +1: replication
        self.name_server = f"127.0.0.1:{self.name_server_port}"
        self.rocketmq = f"127.0.0.1:{self.broker_port}"
        directory.mkdir(parents=True)
        (directory / "namesrv.conf").write_text(
            f"listenPort={self.name_server_port}\nbindAddress=127.0.0.1\n"
            f"kvConfigPath={directory}/kvConfig.json\n")
        (directory / "broker.conf").write_text("\n".join([
            "brokerClusterName=DefaultCluster", "brokerName=broker-a", "brokerId=0", "brokerRole=ASYNC_MASTER",
            "brokerIP1=127.0.0.1", "bindAddress=127.0.0.1", f"listenPort={self.broker_port}",
            f"namesrvAddr={self.name_server}", f"storePathRootDir={directory}/store",
            f"storePathCommitLog={directory}/store/commitlog", "mappedFileSizeCommitLog=268435456",
            f"flushDiskType={flush}", "autoCreateTopicEnable=true",
            f"messageDelayLevel={DELAY_LEVELS}",
            f"transactionTimeOut={CHECK_SECONDS[0] * 1000}", f"transactionCheckInterval={CHECK_SECONDS[1] * 1000}",
            # Without it a busy two-core machine answers SYSTEM_BUSY after 200 ms in the queue.
            "waitTimeMillsInSendQueue=2000", ""]))

        def java(name, main, configuration, heap):
            return Process(name, [
                "java", f"-Xms{heap}", f"-Xmx{heap}", "-XX:MaxDirectMemorySize=1g", f"-Duser.home={directory}",
                f"-Drocketmq.home.dir={directory}", "--add-opens=java.base/java.nio=ALL-UNNAMED",
                "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED", "--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED",
                "-cp", f"{jars}/*", main, "-c", directory / configuration], directory / f"{name}.log")

        self.namesrv = java("namesrv", "org.apache.rocketmq.namesrv.NamesrvStartup", "namesrv.conf", "256m")
        self.broker = java("rocketmq-broker", "org.apache.rocketmq.broker.BrokerStartup", "broker.conf", heap)

    def start(self):
        if self.namesrv.child is None:
            self.namesrv.start()
            self.namesrv.wait_until(lambda: tcp_answers(self.name_server_port))
        self._start_broker()

    def _start_broker(self):
        marker = b"boot success"
        already = self.broker.log.read_bytes().count(marker) if self.broker.log.exists() else 0
        self.broker.start()
        self.broker.wait_until(lambda: self.broker.log.read_bytes().count(marker) > already)
        # The name server may hear of it later. Without the route of this topic no client can make a new one.
        self.broker.wait_until(lambda: topic_is_routed(self.name_server_port, "TBW102"))

    def stop(self):
        try:
            self.broker.stop()
        finally:
            self.namesrv.stop()

    def restart(self, how):
        self.broker.stop(how)
        self._start_broker()
