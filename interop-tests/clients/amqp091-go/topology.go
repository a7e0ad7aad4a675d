package main

import (
	"sort"
	"strings"
)

func queueDeclare(s *scene) {
	queue, c := s.name("declare"), s.confirmed()
	counts := func(flags string) []int {
		declared, err := c.declare(queue, flags, nil)
		must(err)
		equal("name in declare-ok", declared.Name, queue)
		return []int{declared.Messages, declared.Consumers}
	}
	equal("counts of a new queue", counts("durable"), []int{0, 0})
	c.publish(queue, "one", "two")
	equal("counts when declared again", counts("durable"), []int{2, 0})
	c.consume(queue, false, false).wait(2)
	equal("counts with a consumer that holds all: only ready ones count", counts("passive"), []int{0, 1})
}

func queueDeclareMismatch(s *scene) {
	queue := s.channel().queue(s.name("mismatch"), "durable")
	for flags, argument := range map[string]string{"": "durable", "durable,auto-delete": "auto_delete"} {
		s.channel().refused(406, "PRECONDITION_FAILED - inequivalent arg '"+argument+"' for queue '"+queue+"' in vhost '/'",
			func(c *channel) { _, _ = c.declare(queue, flags, nil) })
	}
	s.channel().refused(405, "RESOURCE_LOCKED", func(c *channel) { _, _ = c.declare(queue, "durable,exclusive", nil) })
	check(s.queueExists(queue), "the queue is untouched")
}

func queueTypes(s *scene) {
	for kind, other := range map[string]string{"classic": "quorum", "quorum": "classic"} {
		queue, c := s.name(kind), s.confirmed()
		for i := 0; i < 2; i++ {
			_, err := c.declare(queue, "durable", args{"x-queue-type": kind})
			must(err)
		}
		c.persist("", queue, "one", "two")
		must(c.Nack(c.get(queue, false).DeliveryTag, false, true))
		c.waitReady(queue, 2)
		// A quorum queue may put it behind the others (RabbitMQ before 4.0 does).
		both := []string{}
		for i := 0; i < 2; i++ {
			message := c.get(queue, true)
			both = append(both, string(message.Body)+map[bool]string{true: "+"}[message.Redelivered])
		}
		sort.Strings(both)
		equal("messages of a "+kind+" queue after a requeue", both, []string{"one+", "two"})
		s.channel().refused(406, "inequivalent arg 'x-queue-type' for queue '"+queue+"'",
			func(c *channel) { _, _ = c.declare(queue, "durable", args{"x-queue-type": other}) })
	}
	s.channel().refused(406, "x-queue-type",
		func(c *channel) { _, _ = c.declare(s.name("nonsense"), "durable", args{"x-queue-type": "nonsense"}) })
	s.channel().refused(406, "non-durable",
		func(c *channel) { _, _ = c.declare(s.name("transient"), "", args{"x-queue-type": "quorum"}) })
}

func notFound(s *scene) {
	missing, present := s.name("missing"), s.channel().queue(s.name("present"), "")
	noQueue, noExchange := "no queue '"+missing+"' in vhost '/'", "no exchange '"+missing+"' in vhost '/'"
	for _, attempt := range []struct {
		text string
		run  func(*channel)
	}{
		{noQueue, func(c *channel) { _, _ = c.declare(missing, "passive", nil) }},
		{noQueue, func(c *channel) { _, _ = c.Consume(missing, "", false, false, false, false, nil) }},
		{noQueue, func(c *channel) { _, _, _ = c.Get(missing, true) }},
		{noQueue, func(c *channel) { _, _ = c.QueuePurge(missing, false) }},
		{noQueue, func(c *channel) { _ = c.QueueBind(missing, "key", "amq.direct", false, nil) }},
		{noExchange, func(c *channel) { _ = c.ExchangeDeclarePassive(missing, "direct", false, false, false, false, nil) }},
		{noExchange, func(c *channel) { _ = c.QueueBind(present, "key", missing, false, nil) }},
		{noExchange, func(c *channel) { _ = c.ExchangeBind("amq.fanout", "", missing, false, nil) }},
		{noExchange, func(c *channel) { c.publishTo(missing, "key", "lost") }},
	} {
		s.channel().refused(404, "NOT_FOUND - "+attempt.text, attempt.run)
	}
}

func exclusiveQueue(s *scene) {
	queue, owner := s.name("exclusive"), s.channel()
	owner.queue(queue, "exclusive")
	owner.publish(queue, "mine")
	for _, attempt := range []func(*channel){
		func(c *channel) { _, _ = c.declare(queue, "passive", nil) },
		func(c *channel) { _, _ = c.declare(queue, "", nil) },
		func(c *channel) { _, _ = c.declare(queue, "exclusive", nil) },
		func(c *channel) { _, _ = c.Consume(queue, "", false, false, false, false, nil) },
		func(c *channel) { _, _, _ = c.Get(queue, true) },
		func(c *channel) { _ = c.QueueBind(queue, "key", "amq.direct", false, nil) },
		func(c *channel) { _, _ = c.QueuePurge(queue, false) },
		func(c *channel) { _, _ = c.QueueDelete(queue, false, false, false) },
	} {
		s.channel().refused(405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '"+queue+"'", attempt)
	}
	// Another channel of the owner's connection may use it.
	equal("queue of the owner", open(owner.connection).drain(queue), []string{"mine"})
	must(owner.connection.Close())
	waitUntil("the queue to go with its owner", func() bool { return !s.queueExists(queue) })
	successor := s.channel()
	successor.queue(queue, "exclusive")
	equal("messages of its successor", successor.ready(queue), 0)
	must(successor.connection.Close())
}

func serverNamedQueue(s *scene) {
	c := s.channel()
	names := map[string]bool{}
	last := ""
	for i := 0; i < 3; i++ {
		last = c.queue("", "exclusive")
		check(strings.HasPrefix(last, "amq.gen-"), "the name %s begins with amq.gen-", last)
		names[last] = true
	}
	equal("different names", len(names), 3)
	c.bind("", "amq.direct", last+".key")
	c.publishTo("amq.direct", last+".key", "to the last")
	equal("message read by the empty name", c.drain(""), []string{"to the last"})
	// Empty queue name and empty key together: the queue's own name is the key.
	c.bind("", "amq.direct", "")
	c.publishTo("amq.direct", last, "by its name")
	equal("message by the queue's name as key", c.drain(last), []string{"by its name"})
	s.channel().refused(404, "NOT_FOUND", func(c *channel) { _ = c.QueueBind("", "key", "amq.direct", false, nil) })
}

func autoDeleteQueue(s *scene) {
	queue, c := s.name("auto-delete"), s.channel()
	c.queue(queue, "auto-delete")
	c.publish(queue, "one")
	equal("basic.get before the first consumer", c.drain(queue), []string{"one"})
	check(s.queueExists(queue), "the queue stays before its first consumer")
	first, second := c.consume(queue, false, false), c.consume(queue, false, false)
	first.cancel()
	check(s.queueExists(queue), "the queue stays while one consumer is left")
	second.cancel()
	waitUntil("the queue to go with its last consumer", func() bool { return !s.queueExists(queue) })
}

func autoDeleteExchange(s *scene) {
	c := s.channel()
	source, target := c.exchange(s.name("source"), "fanout", "auto-delete"), c.exchange(s.name("target"), "fanout", "")
	queue := c.queue(s.name("queue"), "")
	must(c.ExchangeBind(target, "", source, false, nil))
	c.bind(queue, source, "")
	must(c.QueueUnbind(queue, "", source, nil))
	check(s.exchangeExists(source), "the exchange stays while something is bound to it")
	must(c.ExchangeUnbind(target, "", source, false, nil))
	check(!s.exchangeExists(source), "the exchange goes with its last binding")
	check(s.exchangeExists(target), "the other exchange stays")
}

func reservedNames(s *scene) {
	s.channel().refused(403, "reserved prefix 'amq.*'", func(c *channel) { _, _ = c.declare("amq.interop", "", nil) })
	s.channel().refused(403, "reserved prefix 'amq.*'", func(c *channel) { _ = c.declareExchange("amq.interop", "direct", "") })
	check(!s.queueExists("amq.interop"), "amq.interop does not exist")
	c := s.channel()
	for exchange, kind := range map[string]string{"amq.direct": "direct", "amq.fanout": "fanout", "amq.topic": "topic",
		"amq.headers": "headers", "amq.match": "headers"} {
		check(s.exchangeExists(exchange), "%s exists", exchange)
		c.exchange(exchange, kind, "durable")
	}
	c.refused(403, "amq.direct", func(c *channel) { _ = c.ExchangeDelete("amq.direct", false, false) })
}

func defaultExchange(s *scene) {
	queue := s.channel().queue(s.name("default"), "")
	for _, attempt := range []func(*channel){
		func(c *channel) { _ = c.QueueBind(queue, "key", "", false, nil) },
		func(c *channel) { _ = c.QueueUnbind(queue, queue, "", nil) },
		func(c *channel) { _ = c.ExchangeBind("amq.fanout", "", "", false, nil) },
		func(c *channel) { _ = c.ExchangeBind("", "", "amq.fanout", false, nil) },
		func(c *channel) { _ = c.ExchangeDelete("", false, false) },
	} {
		s.channel().refused(403, "ACCESS_REFUSED - operation not permitted on the default exchange", attempt)
	}
	c := s.confirmed()
	c.publish(queue, "still routed")
	equal("queue after the refusals", c.drain(queue), []string{"still routed"})
}

func exchangeDeclare(s *scene) {
	exchange, c := s.name("exchange"), s.channel()
	c.exchange(exchange, "direct", "durable")
	c.exchange(exchange, "direct", "durable")
	for _, other := range [][]string{{"type", "topic", "durable"}, {"durable", "direct", ""},
		{"auto_delete", "direct", "durable,auto-delete"}, {"internal", "direct", "durable,internal"}} {
		s.channel().refused(406, "PRECONDITION_FAILED - inequivalent arg '"+other[0]+"' for exchange '"+exchange+"' in vhost '/'",
			func(c *channel) { _ = c.declareExchange(exchange, other[1], other[2]) })
	}
	queue := c.queue(s.name("queue"), "")
	c.bind(queue, exchange, "key")
	s.channel().refused(406, "PRECONDITION_FAILED - exchange '"+exchange+"' in vhost '/' in use",
		func(c *channel) { _ = c.ExchangeDelete(exchange, true, false) })
	must(c.QueueUnbind(queue, "key", exchange, nil))
	must(c.ExchangeDelete(exchange, true, false))
	check(!s.exchangeExists(exchange), "the exchange is gone")
	must(c.ExchangeDelete(exchange, false, false))
}

func internalExchange(s *scene) {
	c := s.confirmed()
	front, internal := c.exchange(s.name("front"), "fanout", ""), c.exchange(s.name("internal"), "fanout", "internal")
	queue := c.queue(s.name("queue"), "")
	must(c.ExchangeBind(internal, "", front, false, nil))
	c.bind(queue, internal, "")
	c.publishTo(front, "", "through")
	s.channel().refused(403, "ACCESS_REFUSED - cannot publish to internal exchange '"+internal+"'",
		func(c *channel) { c.publishTo(internal, "", "directly") })
	equal("queue behind the internal exchange", c.drain(queue), []string{"through"})
}

func exchangeDirect(s *scene) {
	c := s.confirmed()
	exchange, first, second := c.exchange(s.name("direct"), "direct", ""), c.queue(s.name("first"), ""), c.queue(s.name("second"), "")
	c.bind(first, exchange, "both")
	c.bind(second, exchange, "both")
	c.bind(second, exchange, "one")
	for _, key := range []string{"both", "one", "none", "BOTH", ""} {
		c.publishTo(exchange, key, key)
	}
	equal("first queue", c.drain(first), []string{"both"})
	equal("second queue", c.drain(second), []string{"both", "one"})
}

func exchangeFanout(s *scene) {
	c := s.confirmed()
	exchange, queues := c.exchange(s.name("fanout"), "fanout", ""), []string{}
	for i := 0; i < 3; i++ {
		queues = append(queues, c.queue(s.name("queue"), ""))
		c.bind(queues[i], exchange, "ignored")
	}
	c.publishTo(exchange, "ignored", "1")
	c.publishTo(exchange, "", "2")
	for _, queue := range queues {
		equal(queue, c.drain(queue), []string{"1", "2"})
	}
}

func exchangeTopic(s *scene) {
	c := s.confirmed()
	patterns, rows := topicTable()
	exchange, queues := c.exchange(s.name("topic"), "topic", ""), map[string]string{}
	for _, pattern := range patterns {
		queues[pattern] = c.queue(s.name("pattern"), "")
		c.bind(queues[pattern], exchange, pattern)
	}
	expected := map[string][]string{}
	for _, row := range rows {
		c.publishTo(exchange, row[0], row[0])
		for _, pattern := range row[1:] {
			expected[pattern] = append(expected[pattern], row[0])
		}
	}
	for pattern, queue := range queues {
		equal("keys that match '"+pattern+"'", c.drain(queue), expected[pattern])
	}
}

func exchangeHeaders(s *scene) {
	c := s.confirmed()
	exchange := c.exchange(s.name("headers"), "headers", "")
	bound := func(arguments args) string {
		queue := c.queue(s.name("queue"), "")
		must(c.QueueBind(queue, "", exchange, false, arguments))
		return queue
	}
	all := bound(args{"x-match": "all", "colour": "red", "size": 5})
	some := bound(args{"x-match": "any", "colour": "red", "size": 5})
	implied := bound(args{"colour": "red", "size": 5})
	present := bound(args{"x-match": "all", "colour": nil}) // void: any value will do
	for _, message := range []struct {
		body    string
		headers args
	}{
		{"both", args{"colour": "red", "size": 5, "other": true}},
		{"colour", args{"colour": "red"}},
		{"wrong-size", args{"colour": "red", "size": 6}},
		{"text-size", args{"size": "5"}},
		{"blue", args{"colour": "blue"}},
		{"nothing", args{}},
		{"no-headers-at-all", nil},
	} {
		must(c.send(exchange, "ignored", publishing(message.body, message.headers)))
	}
	equal("x-match all", c.drain(all), []string{"both"})
	equal("no x-match means all", c.drain(implied), []string{"both"})
	equal("x-match any", c.drain(some), []string{"both", "colour", "wrong-size"})
	equal("a header that only must be present", c.drain(present), []string{"both", "colour", "wrong-size", "blue"})
}

func exchangeToExchange(s *scene) {
	c := s.confirmed()
	source, middle := c.exchange(s.name("source"), "topic", ""), c.exchange(s.name("middle"), "direct", "")
	queue := c.queue(s.name("queue"), "")
	must(c.ExchangeBind(middle, "orders.#", source, false, nil))
	c.bind(queue, middle, "orders.new")
	for _, key := range []string{"orders.new", "orders.old", "bills.new"} {
		c.publishTo(source, key, key)
	}
	equal("the key must pass both exchanges", c.drain(queue), []string{"orders.new"})
	// A second way to the same queue and a cycle back: still one copy.
	c.bind(queue, source, "#")
	must(c.ExchangeBind(source, "orders.new", middle, false, nil))
	c.publishTo(source, "orders.new", "once")
	equal("two ways and a cycle", c.drain(queue), []string{"once"})
	must(c.QueueUnbind(queue, "#", source, nil))
	must(c.ExchangeUnbind(middle, "orders.#", source, false, nil))
	c.publishTo(source, "orders.new", "unrouted")
	c.publishTo(middle, "orders.new", "direct")
	equal("after the unbind", c.drain(queue), []string{"direct"})
}

func unbind(s *scene) {
	c := s.confirmed()
	exchange, queue := c.exchange(s.name("direct"), "direct", ""), c.queue(s.name("queue"), "")
	for _, key := range []string{"stays", "goes", "goes"} {
		c.bind(queue, exchange, key)
	}
	c.publishTo(exchange, "goes", "before")
	must(c.QueueUnbind(queue, "goes", exchange, nil))
	c.publishTo(exchange, "goes", "after")
	c.publishTo(exchange, "stays", "stays")
	equal("queue", c.drain(queue), []string{"before", "stays"})
	must(c.QueueUnbind(queue, "never bound", exchange, nil))
}
