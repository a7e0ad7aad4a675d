package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func tutorialHello(s *scene) {
	queue, sender, receiver := s.name("hello"), s.channel(), s.channel()
	for _, c := range []*channel{sender, receiver} { // both sides declare, as neither knows who is first
		c.queue(queue, "")
	}
	sender.publish(queue, "Hello, rock!")
	message := receiver.consume(queue, true, false).wait(1)[0]
	equal("delivery", []any{string(message.Body), message.Exchange, message.RoutingKey, message.Redelivered},
		[]any{"Hello, rock!", "", queue, false})
	check(sender.get(queue, true) == nil, "the queue is empty after the delivery")
}

func tutorialWorkQueues(s *scene) {
	queue, sender := s.name("tasks"), s.confirmed()
	sender.queue(queue, "durable")
	worker := func() *inbox {
		c := s.channel()
		must(c.Qos(1, 0, false))
		return c.consume(queue, false, false)
	}
	slow, quick := worker(), worker()
	sender.persist("", queue, sequence(6)...)
	waitUntil("one task for each worker", func() bool { return slow.count() > 0 && quick.count() > 0 })
	done := []string{}
	quickWorks := func(count int) {
		for len(done) < count {
			waitUntil("the next task", func() bool { return quick.count() > len(done) })
			message := quick.all()[len(done)]
			equal("delivery mode", message.DeliveryMode, 2)
			done = append(done, string(message.Body))
			must(message.Ack(false))
		}
	}
	quickWorks(5)
	equal("tasks held by the worker that never finished its first", slow.count(), 1)
	// The slow worker dies: its task goes to the other one.
	must(slow.channel.connection.Close())
	quickWorks(6)
	equal("the abandoned task", outline(quick.all())[5], string(slow.all()[0].Body)+"+")
	all := map[string]bool{}
	for _, body := range done {
		all[body] = true
	}
	equal("different tasks done", len(all), 6)
}

func tutorialPublishSubscribe(s *scene) {
	c := s.channel()
	logs := c.exchange(s.name("logs"), "fanout", "")
	subscribe := func() string {
		queue := c.queue("", "exclusive")
		c.bind(queue, logs, "")
		return queue
	}
	early := []string{subscribe(), subscribe()}
	c.publishTo(logs, "", "one", "two")
	late := subscribe()
	c.publishTo(logs, "", "three")
	for _, queue := range early {
		equal("log of an early subscriber", c.drain(queue), []string{"one", "two", "three"})
	}
	equal("log of a late subscriber", c.drain(late), []string{"three"})
}

func keys(messages []amqp.Delivery) []string {
	list := []string{}
	for _, message := range messages {
		list = append(list, message.RoutingKey)
	}
	return list
}

func subscribed(c *channel, exchange string, keys ...string) *inbox {
	queue := c.queue("", "exclusive")
	for _, key := range keys {
		c.bind(queue, exchange, key)
	}
	return c.consume(queue, true, false)
}

func tutorialRouting(s *scene) {
	c := s.channel()
	exchange := c.exchange(s.name("direct_logs"), "direct", "")
	all, errors := subscribed(c, exchange, "info", "warning", "error"), subscribed(c, exchange, "error")
	for _, severity := range []string{"info", "debug", "error", "warning"} {
		c.publishTo(exchange, severity, severity)
	}
	equal("routing keys", keys(all.wait(3)), []string{"info", "error", "warning"})
	equal("errors only", keys(errors.wait(1)), []string{"error"})
}

func tutorialTopics(s *scene) {
	c := s.channel()
	exchange := c.exchange(s.name("topic_logs"), "topic", "")
	boxes := []*inbox{subscribed(c, exchange, "#"), subscribed(c, exchange, "kern.*"), subscribed(c, exchange, "*.critical"),
		subscribed(c, exchange, "kern.*", "*.critical")}
	for _, key := range []string{"kern.critical", "kern.info", "cron.critical", "cron.info.more"} {
		c.publishTo(exchange, key, key)
	}
	for i, count := range []int{4, 2, 2, 3} {
		boxes[i].wait(count)
	}
	equal("two patterns, each message once", keys(boxes[3].all()), []string{"kern.critical", "kern.info", "cron.critical"})
}

func tutorialRPC(s *scene) {
	requests, server, client := s.name("rpc"), s.channel(), s.channel()
	server.queue(requests, "")
	must(server.Qos(1, 0, false))
	work := server.consume(requests, false, false)
	replyTo := client.queue("", "exclusive")
	replies := client.consume(replyTo, true, false)
	for _, number := range []string{"3", "30"} {
		must(client.send("", requests, amqp.Publishing{Body: []byte(number), ReplyTo: replyTo, CorrelationId: "call-" + number}))
	}
	for call := 0; call < 2; call++ {
		waitUntil("a request", func() bool { return work.count() > call })
		request := work.all()[call]
		must(server.send("", request.ReplyTo, amqp.Publishing{Body: append(request.Body, '!'), CorrelationId: request.CorrelationId}))
		must(request.Ack(false))
	}
	answers := []string{}
	for _, message := range replies.wait(2) {
		answers = append(answers, message.CorrelationId+"="+string(message.Body))
	}
	equal("answers by correlation id", answers, []string{"call-3=3!", "call-30=30!"})
}

func handshake(s *scene) {
	connection := s.connect(amqp.Config{ChannelMax: 100, FrameSize: 8192, Heartbeat: 7 * time.Second})
	for _, key := range []string{"product", "version", "platform"} {
		text, _ := connection.Properties[key].(string)
		check(text != "", "server property %s is %v", key, connection.Properties[key])
	}
	capabilities, _ := connection.Properties["capabilities"].(amqp.Table)
	for _, name := range []string{"publisher_confirms", "exchange_exchange_bindings", "basic.nack", "consumer_cancel_notify",
		"per_consumer_qos", "authentication_failure_close"} {
		equal("capability "+name, capabilities[name], true)
	}
	equal("negotiated limits", []any{connection.Config.ChannelMax, connection.Config.FrameSize, connection.Config.Heartbeat},
		[]any{100, 8192, 7 * time.Second})
}

func wrongPassword(s *scene) {
	login := []amqp.Authentication{&amqp.PlainAuth{Username: "guest", Password: "wrong"}}
	// Without the capability a broker ends the connection without a word. The client has one text for both.
	for _, capabilities := range []amqp.Table{{}, {"authentication_failure_close": true}} {
		_, err := s.dial(address(), amqp.Config{SASL: login, Properties: amqp.Table{"capabilities": capabilities}})
		check(errors.Is(err, amqp.ErrCredentials), "a wrong password brings %v", err)
	}
}

func unknownVhost(s *scene) {
	_, err := s.dial(address(), amqp.Config{Vhost: "no-such-vhost"})
	check(errors.Is(err, amqp.ErrVhost), "an unknown vhost brings %v", err)
}

func heartbeatIdle(s *scene) {
	connection := s.connect(amqp.Config{Heartbeat: time.Second})
	// The time is the subject here. Either side gives up after two silent intervals.
	time.Sleep(5 * time.Second)
	check(!connection.IsClosed(), "an idle connection was closed")
	c := open(connection)
	queue := c.queue("", "exclusive")
	c.publish(queue, "still here")
	equal("queue after the idle time", c.drain(queue), []string{"still here"})
}

func channelLifecycle(s *scene) {
	connection := s.connect(amqp.Config{ChannelMax: 50})
	channels := []*channel{}
	for i := 0; i < 50; i++ {
		channels = append(channels, open(connection))
	}
	queue, expected := channels[0].queue("", "exclusive"), map[string]bool{}
	for i, c := range channels {
		c.publish(queue, fmt.Sprint(i))
		expected[fmt.Sprint(i)] = true
	}
	_, err := connection.Channel()
	check(errors.Is(err, amqp.ErrChannelMax), "a channel beyond the limit brings %v", err)
	for _, c := range channels[1:] {
		must(c.Close())
	}
	// Every closed channel's publishes were processed before its close was answered.
	for _, body := range channels[0].drain(queue) {
		check(expected[body], "unexpected message %s", body)
		delete(expected, body)
	}
	equal("messages missing", len(expected), 0)
	for i := 0; i < 60; i++ { // more than there are numbers
		again := open(connection)
		again.publish(queue, "again")
		must(again.Close())
		equal("message by a reused channel number", channels[0].drain(queue), []string{"again"})
	}
}

func channelErrorIsolation(s *scene) {
	queue, connection := s.name("isolation"), s.connect(amqp.Config{ChannelMax: 2})
	healthy, failing := open(connection), open(connection)
	healthy.queue(queue, "")
	failing.consume(queue, false, false)
	consumers := func() int {
		declared, err := healthy.declare(queue, "passive", nil)
		must(err)
		return declared.Consumers
	}
	equal("consumers before the error", consumers(), 1)
	failing.refused(404, "no queue", func(c *channel) { _, _ = c.declare(s.name("missing"), "passive", nil) })
	check(failing.IsClosed() && !healthy.IsClosed() && !connection.IsClosed(), "only the failing channel is closed")
	waitUntil("its consumer to go", func() bool { return consumers() == 0 })
	healthy.publish(queue, "fine")
	fresh := open(connection) // only the failed channel's number is free
	equal("message read on the same channel number", fresh.drain(queue), []string{"fine"})
}

func deliveryAfterLostConnection(s *scene) {
	queue, watcher := s.name("lost"), s.channel()
	watcher.queue(queue, "")
	watcher.publish(queue, sequence(5)...)
	line := newProxy(address())
	connection, err := s.dial(line.listener.Addr().String(), amqp.Config{})
	must(err)
	doomed := open(connection)
	must(doomed.Qos(3, 0, false))
	held := doomed.consume(queue, false, false)
	must(held.wait(3)[0].Ack(false))
	held.wait(4) // the ack has arrived: a fourth message came for it
	line.cut()
	watcher.waitReady(queue, 4)
	equal("what came back", strings.Join(outline(watcher.consume(queue, true, false).wait(4)), " "), "m1+ m2+ m3+ m4")
}
