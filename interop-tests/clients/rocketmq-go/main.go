package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/admin"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
	"github.com/apache/rocketmq-client-go/v2/rlog"
)

func main() {
	rlog.SetLogLevel("error")
	if len(os.Args) == 4 && os.Args[1] == "failover" {
		runFailover(os.Args[2], os.Args[3])
	}
	registerProducing()
	registerTopics()
	registerConsuming()
	registerLater()
	registerDurability()
	runAll()
}

func registerProducing() {
	register("send-sync", usual, sendSync)
	register("send-async", usual, sendAsync)
	register("send-oneway", usual, sendOneWay)
	register("send-batch", usual, sendBatch)
	lacks("send-vip", "this client does not use the VIP port")
	register("ids-and-offsets", usual, idsAndOffsets)
	register("ordered-by-selector", usual, orderedBySelector)
	register("large-messages", usual, largeMessages)
	register("compressed-bodies", usual, compressedBodies)
	register("delay-level", usual, delayLevel)
	lacks("timer-delay", "this client has no timer messages")
	register("transaction", usual, transaction)
}

func sendSync(c *closer) {
	p := newProducer(c)
	topic := newTopic(p, "sync")
	box := consume(c, topic, "*")
	m := message(topic, "body ö").WithTag("TagA").WithKeys([]string{"k1", "k2"})
	m.Flag = 7
	m.WithProperty("user", "värde")
	result := sendOk(p, m)
	check(result.MsgID != "" && result.OffsetMsgID != "" && result.QueueOffset >= 0, "ids and offset: %v", result)
	got := box.await(1)[0]
	equal([]any{string(got.Body), got.GetTags(), got.GetKeys(), got.GetProperty("user"), got.Flag},
		[]any{"body ö", "TagA", "k1 k2", "värde", 7}, "message")
}

func sendAsync(c *closer) {
	p := newProducer(c)
	topic := newTopic(p, "async")
	box := consume(c, topic, "*")
	var called atomic.Int64
	expected := []string{}
	for i := 0; i < 50; i++ {
		body := fmt.Sprint("m", i)
		expected = append(expected, body)
		must(p.SendAsync(context.Background(), func(_ context.Context, result *primitive.SendResult, err error) {
			if err == nil && result.Status == primitive.SendOK {
				called.Add(1)
			}
		}, message(topic, body)), "send")
	}
	waitUntil(10, func() bool { return called.Load() == 50 }, func() string { return fmt.Sprint("callbacks, have ", called.Load()) })
	box.awaitExactly(expected)
	equal(called.Load(), 50, "callbacks")
}

func sendOneWay(c *closer) {
	p := newProducer(c)
	topic := newTopic(p, "oneway")
	box := consume(c, topic, "*")
	expected := []string{}
	for i := 0; i < 20; i++ {
		body := fmt.Sprint("m", i)
		expected = append(expected, body)
		must(p.SendOneWay(context.Background(), message(topic, body)), "send")
	}
	box.awaitExactly(expected)
}

func sendBatch(c *closer) {
	p := newProducer(c)
	topic := newTopic(p, "batch")
	box := consume(c, topic, "*")
	batch, expected := []*primitive.Message{}, []string{}
	for i := 0; i < 10; i++ {
		body := fmt.Sprint("m", i)
		expected = append(expected, body)
		batch = append(batch, message(topic, body).WithTag("T").WithKeys([]string{fmt.Sprint("key", i)}))
	}
	result := sendOk(p, batch...)
	equal(len(strings.Split(result.OffsetMsgID, ",")), 10, "offset ids")
	messages := box.await(10)
	box.awaitExactly(expected)
	seen := map[int64]bool{}
	for _, m := range messages {
		equal(m.Queue.QueueId, result.MessageQueue.QueueId, "queue")
		equal(m.GetKeys(), "key"+string(m.Body[1:]), "keys")
		seen[m.QueueOffset] = true
	}
	for i := int64(0); i < 10; i++ {
		check(seen[result.QueueOffset+i], "offset %d", result.QueueOffset+i)
	}
}

func idsAndOffsets(c *closer) {
	p := newProducer(c)
	topic := newTopic(p, "ids")
	box := consume(c, topic, "*")
	results := map[string]*primitive.SendResult{}
	for i := 0; i < 20; i++ {
		body := fmt.Sprint("m", i)
		results[body] = sendOk(p, message(topic, body))
	}
	for _, m := range box.await(20) {
		result := results[string(m.Body)]
		equal([]any{m.MsgId, m.OffsetMsgId, m.QueueOffset, m.Queue.QueueId},
			[]any{result.MsgID, result.OffsetMsgID, result.QueueOffset, result.MessageQueue.QueueId}, "ids")
	}
}

func orderedBySelector(c *closer) {
	p := newProducer(c, producer.WithQueueSelector(producer.NewHashQueueSelector()))
	topic := newTopic(p, "selector")
	box := consume(c, topic, "*")
	for i := 0; i < 40; i++ {
		sendOk(p, message(topic, fmt.Sprint(i)).WithShardingKey(fmt.Sprint("key", i%4)))
	}
	queues, last := map[string]int{}, map[string]int64{}
	for _, m := range box.await(40) {
		key := m.GetShardingKey()
		if queue, known := queues[key]; known {
			equal(m.Queue.QueueId, queue, "queue of "+key)
		}
		queues[key] = m.Queue.QueueId
		check(m.QueueOffset > last[key] || last[key] == 0, "order of %s", key)
		last[key] = m.QueueOffset
	}
}

func largeMessages(c *closer) {
	p := newProducer(c)
	topic := newTopic(p, "large")
	box := consume(c, topic, "*")
	body := make([]byte, 4*1024*1024-1024)
	for i := range body {
		body[i] = byte(i*2654435761>>13 ^ i)
	}
	sendOk(p, &primitive.Message{Topic: topic, Body: body})
	check(bytes.Equal(box.await(1)[0].Body, body), "4 MiB changed")
	noisy := make([]byte, 5*1024*1024)
	seed := uint32(1)
	for i := range noisy {
		seed = seed*1664525 + 1013904223
		noisy[i] = byte(seed >> 24)
	}
	if _, err := trySend(p, &primitive.Message{Topic: topic, Body: noisy}); err == nil {
		panic(failure("5 MiB were taken"))
	}
	sendOk(p, message(topic, "on"))
	box.await(2)
}

func compressedBodies(c *closer) {
	p := newProducer(c)
	topic := newTopic(p, "compressed")
	box := consume(c, topic, "*")
	body := strings.Repeat("compressible ", 5000)
	sendOk(p, message(topic, body))
	got := box.await(1)[0]
	check(string(got.Body) == body, "the body changed")
}

func delayLevel(c *closer) {
	p := newProducer(c)
	topic := newTopic(p, "delay")
	box := consume(c, topic, "*")
	started := time.Now()
	sendOk(p, message(topic, "late").WithDelayTimeLevel(1))
	box.await(1)
	check(time.Since(started) >= 900*time.Millisecond, "it came after %v", time.Since(started))
}

type decides struct{}

func (decides) ExecuteLocalTransaction(m *primitive.Message) primitive.LocalTransactionState {
	if m.GetProperty("end") == "commit" {
		return primitive.CommitMessageState
	}
	return primitive.RollbackMessageState
}

func (decides) CheckLocalTransaction(*primitive.MessageExt) primitive.LocalTransactionState {
	return primitive.RollbackMessageState
}

func transaction(c *closer) {
	plain := newProducer(c)
	topic := newTopic(plain, "transaction")
	box := consume(c, topic, "*")
	p, err := rocketmq.NewTransactionProducer(decides{}, producerOptions()...)
	must(err, "new producer")
	must(p.Start(), "start producer")
	c.later(func() { _ = p.Shutdown() })
	expected := []string{}
	for i, end := range []string{"commit", "rollback", "commit"} {
		m := message(topic, fmt.Sprint(end, i))
		m.WithProperty("end", end)
		_, err := p.SendMessageInTransaction(context.Background(), m)
		must(err, "send in transaction")
		if end == "commit" {
			expected = append(expected, fmt.Sprint(end, i))
		}
	}
	expected = append(expected, "plain")
	sendOk(plain, message(topic, "plain"))
	box.awaitExactly(expected)
}

func registerTopics() {
	register("auto-created-topic", usual, func(c *closer) {
		p := newProducer(c)
		topic := newTopic(p, "auto")
		waitUntil(10, func() bool { return len(queues(c, topic)) == 4 }, func() string { return "four queues" })
	})
	register("create-topic", usual, func(c *closer) {
		topic := createTopic(c, 6)
		p := newProducer(c)
		box := consume(c, topic, "*")
		box.awaitExactly(sendMany(p, topic, "m", 12))
	})
	register("unknown-topic", usual, func(c *closer) {
		topic := uniqueName("unknown")
		for i := 0; i < 2; i++ {
			equal(len(queues(c, topic)), 0, "queues of a topic that nobody made")
		}
	})
	register("delete-topic", usual, func(c *closer) {
		p := newProducer(c)
		topic := newTopic(p, "deleted")
		a := newAdmin(c)
		must(a.DeleteTopic(context.Background(), admin.WithTopicDelete(topic), admin.WithBrokerAddrDelete(brokerAddress(c))), "delete")
		waitUntil(10, func() bool { return len(queues(c, topic)) == 0 }, func() string { return "the route to go" })
		other := newProducer(c)
		equal(sendOk(other, message(topic, "anew")).QueueOffset, 0, "first offset")
	})
	register("signed-requests", usual, func(c *closer) {
		if os.Getenv("INTEROP_ACCOUNTS") == "" {
			panic(skip("the broker does not know the accounts (INTEROP_ACCOUNTS is not set)"))
		}
		signing := func(name, secret string) rocketmq.Producer {
			return newProducer(c, producer.WithRetry(0), producer.WithCredentials(primitive.Credentials{AccessKey: name, SecretKey: secret}))
		}
		theirs := newTopic(newProducer(c), "unsigned")
		signer, topic := signing("signer", "a secret of the signer"), uniqueName("signed")
		sendOk(signer, message(topic, "mine"))
		for _, wrong := range []struct {
			p     rocketmq.Producer
			topic string
		}{{signer, theirs}, {signing("signer", "another secret"), topic}, {signing("stranger", "a secret of the signer"), topic}} {
			if _, err := trySend(wrong.p, message(wrong.topic, "refused")); err == nil {
				panic("a send to " + wrong.topic + " was taken")
			}
		}
		sendOk(newProducer(c), message(topic, "unsigned"))
	})
	lacks("request-reply", "proven by the Java clients")
	for _, name := range []string{"query-by-key", "topic-config", "group-figures", "reset-offset", "group-config", "group-tools", "key-values"} {
		lacks(name, "this client has no such calls")
	}
}

func queues(c *closer, topic string) []*primitive.MessageQueue {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	found, err := newAdmin(c).FetchPublishMessageQueues(ctx, topic)
	if err != nil {
		return nil
	}
	return found
}

// brokerAddress is where the broker listens: the runner puts it beside the name server.
func brokerAddress(*closer) string { return brokerOf(nameServer()) }

func createTopic(c *closer, count int) string {
	topic := uniqueName("created")
	a := newAdmin(c)
	must(a.CreateTopic(context.Background(), admin.WithTopicCreate(topic), admin.WithBrokerAddrCreate(brokerAddress(c)),
		admin.WithReadQueueNums(count), admin.WithWriteQueueNums(count)), "create topic")
	waitUntil(10, func() bool { return len(queues(c, topic)) == count }, func() string { return fmt.Sprint(count, " queues") })
	return topic
}

func registerConsuming() {
	register("push-clustering", usual, func(c *closer) {
		p := newProducer(c)
		topic := newTopic(p, "clustering")
		box := consume(c, topic, "*")
		box.awaitExactly(sendMany(p, topic, "m", 100))
	})
	register("push-tag-filter", usual, func(c *closer) {
		p := newProducer(c)
		topic := newTopic(p, "tags")
		box := consume(c, topic, "A || B")
		wanted := []string{}
		for round := 0; round < 4; round++ {
			for _, tag := range []string{"A", "B", "C", "AB"} {
				body := fmt.Sprint(tag, round)
				sendOk(p, message(topic, body).WithTag(tag))
				if tag == "A" || tag == "B" {
					wanted = append(wanted, body)
				}
			}
		}
		box.awaitExactly(wanted)
	})
	register("push-broadcasting", usual, func(c *closer) {
		p := newProducer(c)
		topic := newTopic(p, "broadcast")
		group := uniqueName("group")
		boxes := []*inbox{{}, {}}
		for _, box := range boxes {
			pushConsumer(c, group, topic, "*", box, consumer.WithConsumerModel(consumer.BroadCasting))
		}
		bodies := sendMany(p, topic, "all", 20)
		for _, box := range boxes {
			box.awaitExactly(bodies)
		}
	})
	register("consume-from-first", usual, func(c *closer) {
		p := newProducer(c)
		topic := newTopic(p, "first")
		bodies := sendMany(p, topic, "before", 20)
		consume(c, topic, "*").awaitExactly(bodies)
	})
	register("first-message", usual, func(c *closer) {
		p := newProducer(c)
		topic := newTopic(p, "latency")
		sendMany(p, topic, "waiting", 4)
		started := time.Now()
		box := consume(c, topic, "*")
		waitUntil(30, func() bool { return len(box.all()) > 0 }, func() string { return "the first message" })
		notes["first-message"] = fmt.Sprint(time.Since(started).Milliseconds(), " ms from start")
	})
	register("rebalance", 2*usual, rebalance)
	register("offsets-survive", usual, func(c *closer) {
		p := newProducer(c)
		topic := newTopic(p, "offsets")
		group := uniqueName("group")
		first := &inbox{}
		stopped := pushConsumer(c, group, topic, "*", first)
		first.awaitExactly(sendMany(p, topic, "before", 20))
		must(stopped.Shutdown(), "shutdown") // writes its offsets
		later := sendMany(p, topic, "while away", 10)
		second := &inbox{}
		pushConsumer(c, group, topic, "*", second)
		second.awaitExactly(later)
	})
	register("group-independence", usual, func(c *closer) {
		p := newProducer(c)
		topic := newTopic(p, "groups")
		first, second := consume(c, topic, "*"), consume(c, topic, "*")
		bodies := sendMany(p, topic, "m", 20)
		first.awaitExactly(bodies)
		second.awaitExactly(bodies)
	})
	register("push-orderly", 4*usual, orderly)
	register("pull", usual, pull)
	for _, name := range []string{"pull-long-poll", "lite-pull-assign", "lite-pull-subscribe", "offset-queries", "committed-offsets"} {
		lacks(name, "this client has no such calls")
	}
}

func rebalance(c *closer) {
	p := newProducer(c)
	topic := newTopic(p, "rebalance")
	group := uniqueName("group")
	boxes := []*inbox{{}, {}}
	first := pushConsumer(c, group, topic, "*", boxes[0])
	pushConsumer(c, group, topic, "*", boxes[1])
	count, total := 0, func() int { return len(boxes[0].all()) + len(boxes[1].all()) }
	waitUntil(60, func() bool {
		sendMany(p, topic, fmt.Sprint("round", count, "-"), 8)
		count += 8
		return len(boxes[0].all()) > 0 && len(boxes[1].all()) > 0
	}, func() string { return "both members to get messages" })
	waitUntil(30, func() bool { return total() >= count }, func() string { return "all messages" })
	must(first.Shutdown(), "shutdown")
	before := total()
	sendMany(p, topic, "alone", 20)
	waitUntil(60, func() bool { return total() >= before+20 }, func() string { return "the last member to have all" })
}

func orderly(c *closer) {
	p := newProducer(c, producer.WithQueueSelector(producer.NewHashQueueSelector()))
	topic := newTopic(p, "orderly")
	group := uniqueName("group")
	var lock sync.Mutex
	reached, holders, count, broken := map[int]int64{}, map[int]int{}, 0, ""
	member := func(number int) rocketmq.PushConsumer {
		made, err := rocketmq.NewPushConsumer(consumerOptions(group, consumer.WithConsumerOrder(true))...)
		must(err, "new consumer")
		must(made.Subscribe(topic, tags("*"), func(_ context.Context, batch ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
			queue := batch[0].Queue.QueueId
			lock.Lock()
			if other := holders[queue]; other != 0 {
				broken += fmt.Sprint("queue ", queue, " with ", other, " and ", number, "; ")
			}
			holders[queue] = number
			lock.Unlock()
			time.Sleep(2 * time.Millisecond) // work that two consumers of one queue would be seen in
			lock.Lock()
			defer lock.Unlock()
			holders[queue] = 0
			for _, m := range batch {
				// This client forgets offsets it has not written yet when it gives up another queue (persist of one deletes
				// the rest): what was consumed may come again, but never with a hole.
				if m.QueueOffset > reached[queue] {
					broken += fmt.Sprint("queue ", queue, ": offset ", m.QueueOffset, " after ", reached[queue]-1, "; ")
				}
				if m.QueueOffset >= reached[queue] {
					reached[queue] = m.QueueOffset + 1
					count++
				}
			}
			return consumer.ConsumeSuccess, nil
		}), "subscribe")
		must(made.Start(), "start consumer")
		var once sync.Once
		stopped := &stoppable{made, &once}
		c.later(func() { _ = stopped.Shutdown() })
		return stopped
	}
	sent := 1
	send := func() {
		for i := 0; i < 40; i++ {
			sendOk(p, message(topic, fmt.Sprint(i)).WithShardingKey(fmt.Sprint("key", i%8)))
		}
		sent += 40
		// A member that joins gets its queues when the locks of the one before have run out: this client does not give them up.
		waitUntil(150, func() bool { lock.Lock(); defer lock.Unlock(); return count >= sent }, func() string {
			lock.Lock()
			defer lock.Unlock()
			return fmt.Sprint(sent, " messages, have ", count, " ", broken)
		})
	}
	member(1)
	send()
	member(2)
	send()
	send()
	lock.Lock()
	defer lock.Unlock()
	equal(broken, "", "order")
	equal(count, sent, "messages")
}

func pull(c *closer) {
	p := newProducer(c)
	topic := newTopic(p, "pull")
	result := sendOk(p, message(topic, "one"))
	reader := pullConsumer(c, uniqueName("group"), topic)
	found, err := reader.PullFrom(context.Background(), result.MessageQueue, result.QueueOffset, 8)
	must(err, "pull")
	equal(found.Status, primitive.PullFound, "status")
	equal(len(found.GetMessageExts()), 1, "messages")
	equal(string(found.GetMessageExts()[0].Body), "one", "body")
	equal(found.NextBeginOffset, result.QueueOffset+1, "next offset")
}

func registerDurability() {
	register("restart-graceful", restart, func(c *closer) { restarted(c, "term") })
	register("restart-kill", restart, func(c *closer) { restarted(c, "kill") })
	lacks("restart-orderly", "proven by the Java clients; this one waits 20 s and more for its locks")
}

func restarted(c *closer, how string) {
	needsRestart()
	p := newProducer(c)
	topic := newTopic(p, "restart")
	box := consume(c, topic, "*")
	kept := sendMany(p, topic, "kept", 20)
	box.awaitExactly(kept)
	restartBroker(how)
	fresh := []string{}
	for i := 0; i < 10; i++ {
		body := fmt.Sprint("fresh", i)
		waitUntil(30, func() bool {
			_, err := trySend(p, message(topic, body))
			return err == nil
		}, func() string { return "the producer to be back" })
		fresh = append(fresh, body)
	}
	waitUntil(60, func() bool {
		have := map[string]bool{}
		for _, body := range box.bodies() {
			have[body] = true
		}
		for _, body := range fresh {
			if !have[body] {
				return false
			}
		}
		return true
	}, func() string { return fmt.Sprint("the consumer to be back, has ", box.bodies()) })
	again := consume(c, topic, "*")
	expected := append(append([]string{}, kept...), fresh...)
	waitUntil(60, func() bool { return len(again.all()) >= len(expected) }, func() string { return "everything for a new group" })
}
