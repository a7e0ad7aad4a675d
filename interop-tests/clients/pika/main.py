"""pika against an AMQP broker: see ../README.md for the environment it reads and the lines it prints."""

import connections  # noqa: F401 (each module registers its scenarios)
import consuming  # noqa: F401
import durability  # noqa: F401
import features  # noqa: F401
import kit
import publishing  # noqa: F401
import routing  # noqa: F401
import topology  # noqa: F401
import transactions  # noqa: F401
import tutorials  # noqa: F401

kit.main()
