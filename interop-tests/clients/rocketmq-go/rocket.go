package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/admin"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
)

// seed tags the message that made a topic; nobody counts it.
const seed = "seed"

func servers() primitive.NamesrvAddr { return primitive.NamesrvAddr{nameServer()} }

func producerOptions(more ...producer.Option) []producer.Option {
	return append([]producer.Option{
		producer.WithNameServer(servers()),
		producer.WithGroupName(uniqueName("producers")),
		producer.WithInstanceName(uniqueName("instance")),
		// A refusal is the subject of some scenarios and must not be retried away in the others.
		producer.WithRetry(0),
		producer.WithSendMsgTimeout(10 * time.Second),
	}, more...)
}

func newProducer(c *closer, more ...producer.Option) rocketmq.Producer {
	made, err := rocketmq.NewProducer(producerOptions(more...)...)
	must(err, "new producer")
	must(made.Start(), "start producer")
	c.later(func() { _ = made.Shutdown() })
	return made
}

func message(topic, body string) *primitive.Message {
	return primitive.NewMessage(topic, []byte(body))
}

func trySend(p rocketmq.Producer, messages ...*primitive.Message) (*primitive.SendResult, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return p.SendSync(ctx, messages...)
}

func sendOk(p rocketmq.Producer, messages ...*primitive.Message) *primitive.SendResult {
	result, err := trySend(p, messages...)
	must(err, "send")
	equal(result.Status, primitive.SendOK, "send status")
	return result
}

// newTopic makes a topic by a first send.
func newTopic(p rocketmq.Producer, kind string) string {
	topic := uniqueName(kind)
	sendOk(p, message(topic, "made "+topic).WithTag(seed))
	if onControl() {
		time.Sleep(time.Second) // Apache's name server learns of it a moment later
	}
	return topic
}

func sendMany(p rocketmq.Producer, topic, prefix string, count int) []string {
	bodies := []string{}
	for i := 0; i < count; i++ {
		body := fmt.Sprintf("%s%d", prefix, i)
		sendOk(p, message(topic, body))
		bodies = append(bodies, body)
	}
	return bodies
}

// inbox collects what a push consumer is given, in the order of the calls.
type inbox struct {
	lock     sync.Mutex
	messages []*primitive.MessageExt
}

func (i *inbox) take(_ context.Context, batch ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
	i.lock.Lock()
	defer i.lock.Unlock()
	for _, m := range batch {
		if m.GetTags() != seed {
			i.messages = append(i.messages, m)
		}
	}
	return consumer.ConsumeSuccess, nil
}

func (i *inbox) all() []*primitive.MessageExt {
	i.lock.Lock()
	defer i.lock.Unlock()
	return append([]*primitive.MessageExt{}, i.messages...)
}

func (i *inbox) bodies() []string {
	bodies := []string{}
	for _, m := range i.all() {
		bodies = append(bodies, string(m.Body))
	}
	return bodies
}

func (i *inbox) await(count int) []*primitive.MessageExt {
	waitUntil(30, func() bool { return len(i.all()) >= count }, func() string {
		return fmt.Sprintf("%d messages, have %v", count, i.bodies())
	})
	equal(len(i.all()), count, "number of messages")
	return i.all()
}

// awaitExactly waits until exactly these bodies have come, in any order.
func (i *inbox) awaitExactly(expected []string) {
	i.await(len(expected))
	equal(sorted(i.bodies()), sorted(expected), "bodies")
}

func tags(expression string) consumer.MessageSelector {
	return consumer.MessageSelector{Type: consumer.TAG, Expression: expression}
}

func consumerOptions(group string, more ...consumer.Option) []consumer.Option {
	return append([]consumer.Option{
		consumer.WithNameServer(servers()),
		consumer.WithGroupName(group),
		consumer.WithInstance(uniqueName("instance")),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset),
	}, more...)
}

func pushConsumer(c *closer, group, topic, expression string, box *inbox, more ...consumer.Option) rocketmq.PushConsumer {
	made, err := rocketmq.NewPushConsumer(consumerOptions(group, more...)...)
	must(err, "new consumer")
	must(made.Subscribe(topic, tags(expression), box.take), "subscribe")
	must(made.Start(), "start consumer")
	var once sync.Once
	stopped := &stoppable{made, &once}
	c.later(func() { _ = stopped.Shutdown() })
	return stopped
}

// stoppable may be shut down twice: the client panics on that.
type stoppable struct {
	rocketmq.PushConsumer
	once *sync.Once
}

func (s *stoppable) Shutdown() error {
	s.once.Do(func() { _ = s.PushConsumer.Shutdown() })
	return nil
}

func consume(c *closer, topic, expression string) *inbox {
	box := &inbox{}
	pushConsumer(c, uniqueName("group"), topic, expression, box)
	return box
}

func pullConsumer(c *closer, group, topic string) rocketmq.PullConsumer {
	made, err := rocketmq.NewPullConsumer(consumerOptions(group)...)
	must(err, "new pull consumer")
	must(made.Subscribe(topic, tags("*")), "subscribe")
	must(made.Start(), "start pull consumer")
	c.later(func() { _ = made.Shutdown() })
	return made
}

type administrator interface {
	CreateTopic(ctx context.Context, opts ...admin.OptionCreate) error
	DeleteTopic(ctx context.Context, opts ...admin.OptionDelete) error
	FetchAllTopicList(ctx context.Context) (*admin.TopicList, error)
	FetchPublishMessageQueues(ctx context.Context, topic string) ([]*primitive.MessageQueue, error)
	Close() error
}

func newAdmin(c *closer) administrator {
	made, err := admin.NewAdmin(admin.WithResolver(primitive.NewPassthroughResolver(servers())))
	must(err, "new admin")
	c.later(func() { _ = made.Close() })
	return made
}
