# bunny against an AMQP broker: see ../README.md for the environment it reads and the lines it prints.

require_relative "kit"
require_relative "messages"
require_relative "topology"

run_all
