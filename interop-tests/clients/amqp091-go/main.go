// Package main drives RabbitMQ's Go client against an AMQP broker: see ../README.md for the environment and the output.
package main

func main() {
	for name, run := range map[string]func(*scene){
		"tutorial-hello":             tutorialHello,
		"tutorial-work-queues":       tutorialWorkQueues,
		"tutorial-publish-subscribe": tutorialPublishSubscribe,
		"tutorial-routing":           tutorialRouting,
		"tutorial-topics":            tutorialTopics,
		"tutorial-rpc":               tutorialRPC,

		"handshake":                      handshake,
		"wrong-password":                 wrongPassword,
		"unknown-vhost":                  unknownVhost,
		"heartbeat-idle":                 heartbeatIdle,
		"channel-lifecycle":              channelLifecycle,
		"channel-error-isolation":        channelErrorIsolation,
		"delivery-after-lost-connection": deliveryAfterLostConnection,

		"queue-declare":          queueDeclare,
		"queue-declare-mismatch": queueDeclareMismatch,
		"queue-types":            queueTypes,
		"not-found":              notFound,
		"exclusive-queue":        exclusiveQueue,
		"server-named-queue":     serverNamedQueue,
		"auto-delete-queue":      autoDeleteQueue,
		"auto-delete-exchange":   autoDeleteExchange,
		"reserved-names":         reservedNames,
		"default-exchange":       defaultExchange,
		"exchange-declare":       exchangeDeclare,
		"internal-exchange":      internalExchange,
		"exchange-direct":        exchangeDirect,
		"exchange-fanout":        exchangeFanout,
		"exchange-topic":         exchangeTopic,
		"exchange-headers":       exchangeHeaders,
		"exchange-to-exchange":   exchangeToExchange,
		"unbind":                 unbind,

		"mandatory-return":       mandatoryReturn,
		"confirm-single":         confirmSingle,
		"confirm-batch":          func(s *scene) { confirmMany(s, 100) },
		"confirm-in-flight":      func(s *scene) { confirmMany(s, 1000) },
		"immediate":              immediate,
		"bodies":                 allBodies,
		"properties":             properties,
		"property-expiration":    propertyExpiration,
		"header-types":           headerTypes,
		"publish-then-count":     publishThenCount,
		"expiration":             expiration,
		"expiration-zero":        expirationZero,
		"expiration-invalid":     expirationInvalid,
		"queue-times":            queueTimes,
		"cc-bcc":                 ccBcc,
		"direct-reply-to":        directReplyTo,
		"direct-reply-to-errors": directReplyToErrors,

		"get":                    getOne,
		"ack-multiple":           ackMultiple,
		"nack-requeue":           nackRequeue,
		"reject-discard":         rejectDiscard,
		"unknown-delivery-tag":   unknownDeliveryTag,
		"recover":                recoverUnacked,
		"qos-per-consumer":       qosPerConsumer,
		"qos-global":             qosGlobal,
		"purge-and-delete":       purgeAndDelete,
		"cancel":                 cancelConsumer,
		"cancel-notify":          cancelNotify,
		"consumer-exclusive":     consumerExclusive,
		"consumer-duplicate-tag": consumerDuplicateTag,

		"tx-commit":    txCommit,
		"tx-rollback":  txRollback,
		"tx-large":     txLarge,
		"tx-mandatory": txMandatory,
		"tx-errors":    txErrors,
	} {
		register(name, usual, run)
	}
	register("restart-graceful", restarting, func(s *scene) { restart(s, "term") })
	register("restart-kill", restarting, func(s *scene) { restart(s, "kill") })
	register("connection-blocked", usual, func(*scene) {
		panic(skip("not part of this program; pika, Java and lapin show it"))
	})
	runAll()
}
