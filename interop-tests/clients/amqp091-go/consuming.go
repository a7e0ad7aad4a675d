package main

import (
	"bytes"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// filled is a channel and a queue with m0, m1, …
func (s *scene) filled(count int) (*channel, string) {
	c := s.confirmed()
	queue := c.queue(s.name("queue"), "")
	c.publish(queue, sequence(count)...)
	return c, queue
}

func getOne(s *scene) {
	c, queue := s.filled(3)
	first := c.get(queue, false)
	equal("get-ok", []any{string(first.Body), first.MessageCount, first.Exchange, first.RoutingKey, first.Redelivered},
		[]any{"m0", 2, "", queue, false})
	equal("messages left", c.get(queue, true).MessageCount, 1)
	must(c.Close()) // the first was not acknowledged, the second needed no ack
	c = s.channel()
	c.waitReady(queue, 2)
	both := []amqp.Delivery{*c.get(queue, true), *c.get(queue, true)}
	equal("after the channel closed", outline(both), []string{"m0+", "m2"})
	check(c.get(queue, true) == nil, "get on an empty queue")
}

func ackMultiple(s *scene) {
	c, queue := s.filled(10)
	consumer := s.channel()
	for i, message := range consumer.consume(queue, false, false).wait(10) {
		equal("delivery tag", message.DeliveryTag, i+1)
	}
	must(consumer.Ack(2, false))
	must(consumer.Ack(5, true))
	must(consumer.Close())
	c.waitReady(queue, 5)
	second := s.channel()
	equal("what the multiple ack left", outline(second.consume(queue, false, false).wait(5)),
		[]string{"m5+", "m6+", "m7+", "m8+", "m9+"})
	must(second.Ack(0, true))
	must(second.Close())
	equal("ready messages after an ack of all", c.ready(queue), 0)
}

func (c *channel) hold(queue string, count int) []uint64 {
	tags := []uint64{}
	for i := 0; i < count; i++ {
		tags = append(tags, c.get(queue, false).DeliveryTag)
	}
	return tags
}

func nackRequeue(s *scene) {
	c, queue := s.filled(6)
	held := c.hold(queue, 4)
	must(c.Ack(held[0], false))
	must(c.Nack(held[2], true, true))
	must(c.Reject(held[3], true))
	c.waitReady(queue, 5)
	equal("order and flags", outline(c.consume(queue, false, false).wait(5)), []string{"m1+", "m2+", "m3+", "m4", "m5"})
}

func rejectDiscard(s *scene) {
	c, queue := s.filled(6)
	held := c.hold(queue, 5)
	must(c.Reject(held[1], false))
	must(c.Nack(held[0], false, false))
	must(c.Nack(held[3], true, false))
	must(c.Close())
	watcher := s.channel()
	watcher.waitReady(queue, 2)
	equal("what was not discarded", outline(watcher.consume(queue, true, false).wait(2)), []string{"m4+", "m5"})
}

func unknownDeliveryTag(s *scene) {
	c, queue := s.filled(1)
	tag := c.hold(queue, 1)[0]
	must(c.Ack(tag, false))
	for _, answer := range []func(*channel){
		func(c *channel) { _ = c.Ack(77, false) },
		func(c *channel) { _ = c.Nack(77, false, true) },
		func(c *channel) { _ = c.Reject(77, true) },
	} {
		s.channel().refused(406, "PRECONDITION_FAILED - unknown delivery tag 77", answer)
	}
	c.refused(406, fmt.Sprint("PRECONDITION_FAILED - unknown delivery tag ", tag), func(c *channel) { _ = c.Ack(tag, false) })
}

func recoverUnacked(s *scene) {
	c, queue := s.filled(4)
	box := c.consume(queue, false, false)
	must(box.wait(4)[1].Ack(false))
	must(c.Recover(true))
	equal("recovered", outline(box.wait(7)[4:]), []string{"m0+", "m2+", "m3+"})
}

func qosPerConsumer(s *scene) {
	watcher, queue := s.filled(20)
	c := s.channel()
	must(c.Qos(3, 0, false))
	three := c.consume(queue, false, false)
	must(c.Qos(5, 0, false))
	five := c.consume(queue, false, false)
	waitUntil("3 + 5 messages", func() bool { return three.count()+five.count() >= 8 })
	equal("held, held, ready", []int{three.count(), five.count(), watcher.ready(queue)}, []int{3, 5, 12})
	must(three.all()[0].Ack(false))
	waitUntil("one more for one ack", func() bool { return three.count() == 4 })
	equal("the other consumer's and the ready ones", []int{five.count(), watcher.ready(queue)}, []int{5, 11})
	must(c.Ack(0, true))
	waitUntil("a full window each", func() bool { return three.count()+five.count() == 17 })
}

func qosGlobal(s *scene) {
	watcher, queue := s.filled(10)
	c := s.channel()
	must(c.Qos(4, 0, true))
	boxes := []*inbox{c.consume(queue, false, false), c.consume(queue, false, false)}
	received := func() int { return boxes[0].count() + boxes[1].count() }
	waitUntil("4 messages", func() bool { return received() >= 4 })
	equal("ready and held", []int{watcher.ready(queue), received()}, []int{6, 4})
	must(c.Ack(2, true))
	waitUntil("two more for two acks", func() bool { return received() >= 6 })
	equal("ready and received", []int{watcher.ready(queue), received()}, []int{4, 6})
}

func purgeAndDelete(s *scene) {
	c, queue := s.filled(5)
	c.hold(queue, 1)
	for _, expected := range []int{4, 0} {
		purged, err := c.QueuePurge(queue, false)
		must(err)
		equal("purged: ready ones only", purged, expected)
	}
	c.publish(queue, "one", "two")
	s.channel().refused(406, "PRECONDITION_FAILED - queue '"+queue+"' in vhost '/' not empty",
		func(c *channel) { _, _ = c.QueueDelete(queue, false, true, false) })
	box := c.consume(queue, true, false)
	box.wait(2)
	s.channel().refused(406, "PRECONDITION_FAILED - queue '"+queue+"' in vhost '/' in use",
		func(c *channel) { _, _ = c.QueueDelete(queue, true, false, false) })
	box.cancel()
	c.publish(queue, "three")
	for _, expected := range []int{1, 0} { // the second time it is missing
		deleted, err := c.QueueDelete(queue, true, false, false)
		must(err)
		equal("messages deleted with the queue", deleted, expected)
	}
	check(!s.queueExists(queue), "the queue is gone")
}

func cancelConsumer(s *scene) {
	watcher, queue := s.filled(2)
	c := s.channel()
	box := c.consume(queue, false, false)
	box.wait(2)
	box.cancel()
	watcher.publish(queue, "later")
	equal("ready messages: the later one waits", watcher.ready(queue), 1)
	must(box.wait(2)[0].Ack(false))
	must(c.Close())
	watcher.waitReady(queue, 2)
	equal("the unacked one came back when the channel closed", outline(watcher.consume(queue, true, false).wait(2)),
		[]string{"m1+", "later"})
}

func cancelNotify(s *scene) {
	watcher, queue := s.filled(0)
	c := s.channel()
	cancelled := c.NotifyCancel(make(chan string, 10))
	box := c.consume(queue, false, false)
	_, err := watcher.QueueDelete(queue, false, false, false)
	must(err)
	waitUntil("basic.cancel", func() bool { return len(cancelled) > 0 })
	equal("cancelled consumer", <-cancelled, box.tag)
	check(!c.IsClosed(), "the channel stays open")
}

func consumerExclusive(s *scene) {
	c, queue := s.filled(0)
	only := c.consume(queue, false, true)
	attempt := func(exclusive bool) {
		s.channel().refused(403, "ACCESS_REFUSED - queue '"+queue+"' in vhost '/' in exclusive use",
			func(c *channel) { _, _ = c.Consume(queue, "", false, exclusive, false, false, nil) })
	}
	attempt(false)
	attempt(true)
	only.cancel()
	c.consume(queue, false, false)
	attempt(true)
}

func consumerDuplicateTag(s *scene) {
	c, queue := s.filled(0)
	box := c.consume(queue, false, false)
	c.refused(530, "NOT_ALLOWED - attempt to reuse consumer tag '"+box.tag+"'",
		func(c *channel) { _, _ = c.Consume(queue, box.tag, false, false, false, false, nil) })
	check(c.connection.IsClosed(), "the connection is closed")
}

func txCommit(s *scene) {
	c, observer := s.channel(), s.channel()
	queue, other := c.queue(s.name("tx"), "durable"), c.queue(s.name("tx"), "")
	counts := func() []int { return []int{observer.ready(queue), observer.ready(other)} }
	must(c.Tx())
	c.persist("", queue, "one", "two")
	c.publish(other, "three")
	equal("ready messages before the commit", counts(), []int{0, 0})
	must(c.TxCommit())
	equal("ready messages after the commit", counts(), []int{2, 1})
	// An ack counts when it is committed, together with what is published.
	must(c.Ack(c.hold(queue, 1)[0], false))
	c.publish(other, "four")
	must(c.TxCommit())
	must(c.Close())
	equal("what was not acknowledged", observer.drain(queue), []string{"two"})
	equal("what was published", observer.drain(other), []string{"three", "four"})
}

func txRollback(s *scene) {
	c, observer := s.channel(), s.channel()
	queue := c.queue(s.name("tx"), "durable")
	c.publish(queue, "one", "two")
	must(c.Tx())
	held := c.hold(queue, 2)
	c.publish(queue, "never")
	must(c.Ack(held[0], false))
	must(c.Reject(held[1], true))
	must(c.TxRollback())
	equal("ready messages after the rollback", observer.ready(queue), 0)
	// After a rollback the deliveries are open again under their tags.
	must(c.Ack(held[0], false))
	must(c.TxCommit())
	must(c.Nack(held[1], false, true))
	must(c.Close()) // nothing of an open transaction happens
	observer.waitReady(queue, 1)
	equal("what comes back", outline(observer.consume(queue, true, false).wait(1)), []string{"two+"})
}

func txLarge(s *scene) {
	c := s.channel()
	queue := c.queue(s.name("tx"), "durable")
	must(c.Tx())
	sizes := []int{1, 3 << 20, 700_000, 0, 900_000, 5}
	for number, size := range sizes {
		c.persist("", queue, string(bytes.Repeat([]byte{byte(number)}, size)))
	}
	must(c.TxCommit())
	for _, size := range sizes {
		equal("size", len(c.get(queue, true).Body), size)
	}
	c.persist("", queue, sequence(500)...)
	must(c.TxCommit())
	equal("bodies in order", c.drain(queue), sequence(500))
}

func txMandatory(s *scene) {
	missing, c := s.name("missing"), s.channel()
	returned := c.NotifyReturn(make(chan amqp.Return, 10))
	must(c.Tx())
	must(c.Publish("", missing, true, false, amqp.Publishing{Body: []byte("back")}))
	c.queue("", "exclusive") // a round trip
	equal("returns before the commit", len(returned), 0)
	must(c.TxCommit())
	waitUntil("the return", func() bool { return len(returned) > 0 })
	back := <-returned
	equal("the return", []any{back.ReplyCode, back.RoutingKey, string(back.Body)}, []any{312, missing, "back"})
}

func txErrors(s *scene) {
	s.channel().refused(406, "channel is not transactional", func(c *channel) { _ = c.TxCommit() })
	s.channel().refused(406, "channel is not transactional", func(c *channel) { _ = c.TxRollback() })
	s.confirmed().refused(406, "cannot switch from confirm to tx mode", func(c *channel) { _ = c.Tx() })
	transactional := func() *channel {
		c := s.channel()
		must(c.Tx())
		return c
	}
	c := transactional()
	must(c.Tx()) // again is fine
	c.refused(406, "cannot switch from tx to confirm mode", func(c *channel) { _ = c.Confirm(false) })
	// Known before the commit: an exchange that is not there, a tag that is not open.
	transactional().refused(404, "no exchange", func(c *channel) { c.publishTo(s.name("missing"), "key", "lost") })
	transactional().refused(406, "unknown delivery tag 7", func(c *channel) { _ = c.Ack(7, false) })
}

func restart(s *scene, how string) {
	needsRestart()
	exchange, gone, c := s.name("exchange"), s.name("transient"), s.confirmed()
	c.exchange(exchange, "topic", "durable")
	c.exchange(gone, "topic", "")
	c.queue(gone, "")
	queues := map[string]string{"classic": s.name("classic"), "quorum": s.name("quorum")}
	for kind, queue := range queues {
		_, err := c.declare(queue, "durable", args{"x-queue-type": kind})
		must(err)
		c.bind(queue, exchange, "orders.#")
	}
	for _, body := range sequence(20) {
		must(c.send(exchange, "orders.new", amqp.Publishing{Body: []byte(body), DeliveryMode: 2, Headers: args{"key": "value"}}))
	}
	for _, queue := range queues {
		c := s.channel()
		held := c.hold(queue, 7)
		must(c.Ack(held[4], true))
		must(c.Ack(held[6], false))
		c.ready(queue) // the broker has read the acks when it answers
	}
	s.restart(how)

	settled := map[string]bool{"m0": true, "m1": true, "m2": true, "m3": true, "m4": true, "m6": true}
	kept := []string{"m5"}
	kept = append(kept, sequence(20)[7:]...)
	for kind, queue := range queues {
		back := []string{}
		for _, message := range s.consumeAll(queue, kept) {
			equal("properties", []any{message.DeliveryMode, message.Headers["key"]}, []any{2, "value"})
			body := string(message.Body)
			if how == "kill" && settled[body] {
				// Nobody promised that an ack is on disk the moment it was sent. What comes back of those must say so.
				check(message.Redelivered, "%s came back without its flag", body)
				continue
			}
			if how == "term" {
				equal("redelivered flag of "+body, message.Redelivered, body == "m5")
			}
			back = append(back, body)
		}
		if kind == "quorum" { // RabbitMQ before 4.0 puts the unacked one behind the others
			sort.Slice(back, func(i, j int) bool { return number(back[i]) < number(back[j]) })
		}
		equal(kind+" queue after the restart", back, kept)
	}
	// Exchange, queues and bindings still work together.
	c = s.confirmed()
	c.persist(exchange, "orders.again", "again")
	for _, queue := range queues {
		equal("a new publish", c.drain(queue), []string{"again"})
	}
	check(!s.queueExists(gone) && !s.exchangeExists(gone), "what is not durable is gone")
}

func number(body string) int {
	number, err := strconv.Atoi(body[1:])
	must(err)
	return number
}

// consumeAll takes everything in the queue, all of `kept` at least. A quorum queue may still be without a leader and refuse
// its first consumers.
func (s *scene) consumeAll(queue string, kept []string) []amqp.Delivery {
	c := s.channel()
	deliveries, err := c.Consume(queue, "all", false, false, false, false, nil)
	for deadline := time.Now().Add(30 * time.Second); err != nil; {
		check(strings.Contains(err.Error(), "541") && time.Now().Before(deadline), "consume after the restart: %v", err)
		c = s.channel()
		deliveries, err = c.Consume(queue, "all", false, false, false, false, nil)
	}
	messages, missing, late := []amqp.Delivery{}, map[string]bool{}, time.After(30*time.Second)
	for _, body := range kept {
		missing[body] = true
	}
	for len(missing) > 0 || c.ready(queue) > 0 {
		select {
		case message := <-deliveries:
			messages = append(messages, message)
			delete(missing, string(message.Body))
		case <-late:
			check(false, "%v did not come back", missing)
		}
	}
	must(c.Ack(0, true))
	must(c.connection.Close())
	return messages
}
