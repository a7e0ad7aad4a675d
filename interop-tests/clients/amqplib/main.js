// amqplib against an AMQP broker: see ../README.md for the environment it reads and the lines it prints.
'use strict';

const { runAll } = require('./kit');

runAll({ ...require('./connections'), ...require('./topology'), ...require('./publishing'), ...require('./consuming') });
