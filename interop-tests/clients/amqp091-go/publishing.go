package main

import (
	"bytes"
	"fmt"
	"math/rand"
	"reflect"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const replies = "amq.rabbitmq.reply-to"

func publishing(body string, headers args) amqp.Publishing {
	return amqp.Publishing{Body: []byte(body), Headers: headers}
}

func mandatoryReturn(s *scene) {
	missing, c := s.name("missing"), s.channel()
	must(c.Confirm(false))
	returned := c.NotifyReturn(make(chan amqp.Return, 10))
	confirmed := c.NotifyPublish(make(chan amqp.Confirmation, 10))
	publish := func(queue, body string) int {
		must(c.Publish("", queue, true, false, amqp.Publishing{Body: []byte(body), DeliveryMode: 2, AppId: "interop"}))
		confirm := <-confirmed
		check(confirm.Ack, "%s was not acked", body)
		// The client hands out returns and confirms in the order they came.
		return len(returned)
	}
	for _, body := range []string{"come back", "you too"} {
		equal("returns before the confirm", publish(missing, body), 1)
		back := <-returned
		equal("basic.return", []any{back.ReplyCode, back.ReplyText, back.Exchange, back.RoutingKey, string(back.Body),
			back.DeliveryMode, back.AppId}, []any{312, "NO_ROUTE", "", missing, body, 2, "interop"})
	}
	equal("returns of a routed message", publish(c.queue(s.name("present"), ""), "routed"), 0)
}

func confirmSingle(s *scene) {
	queue, c := s.name("confirm"), s.confirmed()
	c.queue(queue, "durable")
	c.persist("", queue, "safe")
	equal("ready messages after the confirm", c.ready(queue), 1)
	// Unroutable and not mandatory: dropped, and confirmed.
	c.persist("", s.name("missing"), "dropped")
}

func confirmMany(s *scene, count int) {
	queue, c := s.name("confirm"), s.channel()
	c.queue(queue, "durable")
	must(c.Confirm(false))
	confirmed := c.NotifyPublish(make(chan amqp.Confirmation, count))
	for _, body := range sequence(count) {
		must(c.Publish("", queue, false, false, amqp.Publishing{Body: []byte(body), DeliveryMode: 2}))
	}
	seen := map[uint64]bool{}
	for limit := time.After(waitAtMost); len(seen) < count; {
		select {
		case confirm := <-confirmed:
			check(confirm.Ack && !seen[confirm.DeliveryTag], "confirm %v", confirm)
			seen[confirm.DeliveryTag] = true
		case <-limit:
			check(false, "%d confirms missing after %v", count-len(seen), waitAtMost)
		}
	}
	check(seen[1] && seen[uint64(count)], "the tags go from 1 to %d", count)
	equal("bodies", bodies(c.consume(queue, true, false).wait(count)), sequence(count))
}

func immediate(s *scene) {
	s.channel().refused(540, "NOT_IMPLEMENTED - immediate=true", func(c *channel) {
		_ = c.Publish("", s.name("any"), false, true, amqp.Publishing{Body: []byte("now")})
	})
	check(s.connections[0].IsClosed(), "the connection is closed")
}

func allBodies(s *scene) {
	queue, c := s.name("bodies"), s.confirmed()
	c.queue(queue, "durable")
	numbers := rand.New(rand.NewSource(1))
	const frame = frameMax - 8 // the largest body frame under the default limit
	for _, size := range []int{0, 1, frame - 1, frame, frame + 1, 2 * frame, 1 << 20, 5 << 20} {
		body := make([]byte, size)
		_, _ = numbers.Read(body)
		must(c.send("", queue, amqp.Publishing{Body: body, DeliveryMode: 2}))
		check(bytes.Equal(c.get(queue, true).Body, body), "a body of %d bytes came back different", size)
		box := c.consume(queue, true, false)
		must(c.send("", queue, amqp.Publishing{Body: body}))
		check(bytes.Equal(box.wait(1)[0].Body, body), "a body of %d bytes was delivered different", size)
		box.cancel()
	}
}

// sameProperties sends `sent` and compares every property, those it has not included.
func sameProperties(c *channel, queue string, sent amqp.Publishing) {
	must(c.send("", queue, sent))
	got := reflect.ValueOf(*c.get(queue, true))
	want := reflect.ValueOf(sent)
	for i := 0; i < want.NumField(); i++ {
		name := want.Type().Field(i).Name
		expected, actual := want.Field(i).Interface(), got.FieldByName(name).Interface()
		if at, ok := expected.(time.Time); ok {
			check(at.Equal(actual.(time.Time)), "%s: expected %v, got %v", name, expected, actual)
		} else if name != "Body" {
			check(reflect.DeepEqual(actual, expected), "%s: expected %v, got %v", name, expected, actual)
		}
	}
}

func properties(s *scene) {
	queue, c := s.name("properties"), s.confirmed()
	c.queue(queue, "")
	full := amqp.Publishing{ContentType: "text/plain", ContentEncoding: "utf-8", Headers: args{"key": "value"}, DeliveryMode: 2,
		Priority: 7, CorrelationId: "correlation", ReplyTo: "reply.to", MessageId: "message-ü",
		Timestamp: time.Unix(1700000000, 0), Type: "kind", UserId: "guest", AppId: "interop"}
	sameProperties(c, queue, full)
	sameProperties(c, queue, amqp.Publishing{})
	// One at a time as well: an absent property must stay absent.
	all := reflect.ValueOf(full)
	for i := 0; i < all.NumField(); i++ {
		var one amqp.Publishing
		reflect.ValueOf(&one).Elem().Field(i).Set(all.Field(i))
		if name := all.Type().Field(i).Name; name != "Expiration" {
			sameProperties(c, queue, one)
		}
	}
}

func propertyExpiration(s *scene) {
	queue, c := s.name("expiration"), s.confirmed()
	c.queue(queue, "")
	sameProperties(c, queue, amqp.Publishing{Expiration: "600000", DeliveryMode: 2})
}

func headerTypes(s *scene) {
	queue, c := s.name("headers"), s.confirmed()
	c.queue(queue, "")
	simple := func() args {
		return args{"text": "ünïcode", "empty": "", "bytes": []byte{0, 255}, "true": true, "false": false, "u8": byte(200),
			"i8": int8(-100), "i16": int16(-30000), "i32": int32(-1 << 31), "i64": int64(1 << 62), "float": float32(1.5),
			"double": 2.5e300, "decimal": amqp.Decimal{Scale: 3, Value: 12345}, "void": nil}
	}
	headers := simple()
	inner := simple()
	inner["deep"] = args{"array": []any{int32(1), args{"x": "y"}}, "none": args{}}
	headers["table"] = inner
	list := []any{[]any(nil), strings.Repeat("a", 20000)}
	for _, value := range simple() {
		list = append(list, value)
	}
	headers["array"] = list
	at := time.Date(2024, 2, 29, 12, 30, 0, 0, time.UTC)
	headers["timestamp"] = at
	must(c.send("", queue, publishing("", headers)))
	got := c.get(queue, true).Headers
	// A time is the same in any zone.
	check(got["timestamp"].(time.Time).Equal(at), "timestamp: got %v", got["timestamp"])
	delete(got, "timestamp")
	delete(headers, "timestamp")
	equal("number of headers", len(got), len(headers))
	for key, value := range headers {
		check(reflect.DeepEqual(got[key], value), "header %s: expected %s, got %s", key, shortened(value), shortened(got[key]))
	}
}

func publishThenCount(s *scene) {
	// What a channel published it finds there, without waiting for a confirm.
	queue, c := s.name("own"), s.channel()
	c.queue(queue, "durable")
	for i := 0; i < 20; i++ {
		c.persist("", queue, "one", "two", "three")
		equal("basic.get", string(c.get(queue, true).Body), "one")
		equal("passive declare", c.ready(queue), 2)
		purged, err := c.QueuePurge(queue, false)
		must(err)
		equal("purge", purged, 2)
		check(c.get(queue, true) == nil, "the queue is empty after the purge")
	}
}

func (c *channel) mortal(queue, body, milliseconds string) {
	must(c.send("", queue, amqp.Publishing{Body: []byte(body), Expiration: milliseconds, DeliveryMode: 2}))
}

func expiration(s *scene) {
	for _, flags := range []string{"", "durable"} {
		c := s.confirmed()
		queue := c.queue(s.name("ttl"), flags)
		c.mortal(queue, "short", "200")
		c.mortal(queue, "lasting", "")
		c.mortal(queue, "behind", "1")
		c.mortal(queue, "later", "3600000")
		c.waitReady(queue, 3) // the head goes without a consumer, what stands behind a lasting one stays
		for _, expected := range [][]string{{"lasting", ""}, {"later", "3600000"}} {
			message := c.get(queue, true)
			equal("next", []string{string(message.Body), message.Expiration}, expected)
		}
		// A message that expires while a consumer holds it can be acknowledged, but does not come back.
		c.mortal(queue, "held", "300")
		c.mortal(queue, "next", "")
		held := c.get(queue, false)
		equal("held", string(held.Body), "held")
		time.Sleep(500 * time.Millisecond) // the time that passes is the subject
		must(held.Reject(true))
		equal("after the requeue", c.drain(queue), []string{"next"})
	}
}

func expirationZero(s *scene) {
	c := s.confirmed()
	queue := c.queue(s.name("ttl"), "durable")
	c.mortal(queue, "lost", "0")
	c.waitReady(queue, 0)
	box := c.consume(queue, true, false)
	c.mortal(queue, "now", "0")
	equal("what a waiting consumer gets", bodies(box.wait(1)), []string{"now"})
}

func queueTimes(s *scene) {
	times := func(ttl int) args { return args{"x-message-ttl": ttl, "x-expires": 3600000} }
	for _, flags := range []string{"", "durable"} {
		c, queue, idle := s.confirmed(), s.name("times"), s.name("idle")
		_, err := c.declare(queue, flags, times(300))
		must(err)
		c.mortal(queue, "longer", "3600000")
		c.waitReady(queue, 0)
		s.channel().refused(406, "received '301' but current is '300'", func(c *channel) { c.declare(queue, flags, times(301)) })
		_, err = c.declare(idle, flags, args{"x-expires": 300})
		must(err)
		time.Sleep(2 * time.Second) // the time that passes is the subject
		s.channel().refused(404, "no queue", func(c *channel) { c.declare(idle, "passive", nil) })
	}
}

func expirationInvalid(s *scene) {
	// This client sends no empty expiration.
	for value, why := range map[string]string{"ten": "no_integer", "-1": "{value_negative,-1}", "1.5": `{leftover_string,".5"}`,
		"315360000001": "{value_too_large,315360000001}"} {
		s.channel().refused(406, "invalid expiration '"+value+"': "+why, func(c *channel) { c.mortal("anything", "", value) })
	}
}

func ccBcc(s *scene) {
	c := s.confirmed()
	first, second, third := c.queue(s.name("cc"), ""), c.queue(s.name("cc"), ""), c.queue(s.name("cc"), "")
	must(c.send("", first, publishing("all", args{"CC": []any{second, first}, "BCC": []any{third}, "other": int32(1)})))
	for _, queue := range []string{first, second, third} {
		message := c.get(queue, true)
		equal("what each gets", []any{string(message.Body), message.RoutingKey, message.Headers},
			[]any{"all", first, args{"CC": []any{second, first}, "other": 1}})
		check(c.get(queue, true) == nil, "each queue once")
	}
	exchange := c.exchange(s.name("topic"), "topic", "")
	c.bind(first, exchange, "a.*")
	must(c.send(exchange, "no.match", publishing("topic", args{"CC": []any{"a.b", "a.c"}})))
	equal("by a copy's key", c.drain(first), []string{"topic"})
	for _, name := range []string{"CC", "BCC"} {
		s.channel().refused(406, `{unacceptable_type_in_header,"`+name+`",longstr}`,
			func(c *channel) { _ = c.send("", first, publishing("", args{name: second})) })
	}
}

func directReplyTo(s *scene) {
	client, server, queue := s.channel(), s.channel(), s.name("rpc")
	server.queue(queue, "")
	answers := client.consume(replies, true, false)
	replyTo := ""
	for number := 0; number < 3; number++ {
		must(client.send("", queue, amqp.Publishing{ReplyTo: replies, CorrelationId: fmt.Sprint(number)}))
		server.waitReady(queue, 1)
		question := server.get(queue, true)
		replyTo = question.ReplyTo
		check(strings.HasPrefix(replyTo, replies+"."), "reply-to %s", replyTo)
		declared, err := server.declare(replyTo, "passive", nil)
		must(err)
		equal("consumers seen by the server", declared.Consumers, 1)
		must(server.send("", replyTo, amqp.Publishing{Body: []byte("answer"), CorrelationId: question.CorrelationId}))
		message := answers.wait(number + 1)[number]
		equal("the reply", []string{string(message.Body), message.CorrelationId, message.Exchange, message.RoutingKey},
			[]string{"answer", fmt.Sprint(number), "", replyTo})
	}
	_, err := client.declare(replies, "passive", nil)
	must(err)
	answers.cancel()
	server.refused(404, "no queue", func(c *channel) { _, _ = c.declare(replyTo, "passive", nil) })
	s.confirmed().publish(replyTo, "nobody hears")
}

func directReplyToErrors(s *scene) {
	consume := func(autoAck bool) func(*channel) {
		return func(c *channel) { _, _ = c.Consume(replies, "", autoAck, false, false, false, nil) }
	}
	s.channel().refused(406, "reply consumer cannot acknowledge", consume(false))
	second := s.channel()
	second.consume(replies, true, false)
	second.refused(406, "reply consumer already set", consume(true))
	s.channel().refused(406, "fast reply consumer does not exist",
		func(c *channel) { _ = c.send("", "anything", amqp.Publishing{ReplyTo: replies}) })
	s.channel().refused(404, "no queue", func(c *channel) { _, _, _ = c.Get(replies, true) })
}
