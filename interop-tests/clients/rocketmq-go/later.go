package main

import (
	"context"
	"fmt"
	"sync"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
)

func registerLater() {
	register("delay-properties", usual, delayProperties)
	register("dead-letters", 2*usual, deadLetters)
	register("transaction-check", 2*usual, transactionCheck)
	for _, name := range []string{"delay-levels", "delay-restart", "retry", "retry-level", "retry-restart",
		"transaction-properties", "transaction-restart", "orderly-dead-letters"} {
		lacks(name, "proven by the Java clients")
	}
	lacks("view-message", "this client has no such calls")
}

func delayProperties(c *closer) {
	p := newProducer(c)
	topic := newTopic(p, "delay")
	box := consume(c, topic, "A")
	m := message(topic, "later").WithTag("A").WithKeys([]string{"k1"}).WithDelayTimeLevel(1)
	m.WithProperty("kept", "yes")
	sent := sendOk(p, m)
	got := box.await(1)[0]
	equal([]any{string(got.Body), got.GetTags(), got.GetKeys(), got.GetProperty("kept"), got.Topic, got.Queue.QueueId, got.ReconsumeTimes},
		[]any{"later", "A", "k1", "yes", topic, sent.MessageQueue.QueueId, 0}, "message")
}

// deadLetters: a consumer that never consumes; after two retries a message is in %DLQ%group.
func deadLetters(c *closer) {
	p := newProducer(c)
	topic, group := newTopic(p, "deadly"), uniqueName("group")
	var lock sync.Mutex
	counts := []int32{}
	made, err := rocketmq.NewPushConsumer(consumerOptions(group, consumer.WithMaxReconsumeTimes(2))...)
	must(err, "new consumer")
	must(made.Subscribe(topic, tags("T"), func(ctx context.Context, batch ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		lock.Lock()
		defer lock.Unlock()
		for _, m := range batch {
			counts = append(counts, m.ReconsumeTimes)
		}
		if known, ok := primitive.GetConcurrentlyCtx(ctx); ok {
			known.DelayLevelWhenNextConsume = 1
		}
		return consumer.ConsumeRetryLater, nil
	}), "subscribe")
	must(made.Start(), "start consumer")
	c.later(func() { _ = made.Shutdown() })
	sendOk(p, message(topic, "dead").WithTag("T"))
	dead := "%DLQ%" + group
	waitUntil(60, func() bool { return len(queues(c, dead)) == 1 }, func() string {
		lock.Lock()
		defer lock.Unlock()
		return fmt.Sprint("dead letters, attempts ", counts)
	})
	letter := consume(c, dead, "*").await(1)[0]
	equal([]any{string(letter.Body), letter.GetTags(), letter.GetProperty("RETRY_TOPIC")}, []any{"dead", "T", topic}, "dead letter")
	lock.Lock()
	defer lock.Unlock()
	equal(counts, []int32{0, 1, 2}, "attempts")
}

// undecided knows how its transactions end when it is asked, not before.
type undecided struct{}

func (undecided) ExecuteLocalTransaction(*primitive.Message) primitive.LocalTransactionState {
	return primitive.UnknowState
}

func (undecided) CheckLocalTransaction(m *primitive.MessageExt) primitive.LocalTransactionState {
	if m.GetProperty("end") == "commit" {
		return primitive.CommitMessageState
	}
	return primitive.RollbackMessageState
}

func transactionCheck(c *closer) {
	plain := newProducer(c)
	topic := newTopic(plain, "transaction")
	box := consume(c, topic, "*")
	p, err := rocketmq.NewTransactionProducer(undecided{}, producerOptions()...)
	must(err, "new producer")
	must(p.Start(), "start producer")
	c.later(func() { _ = p.Shutdown() })
	for _, end := range []string{"rollback", "commit"} {
		m := message(topic, end)
		m.WithProperty("end", end)
		_, err := p.SendMessageInTransaction(context.Background(), m)
		must(err, "send in transaction")
	}
	box.awaitExactly([]string{"commit"})
}
