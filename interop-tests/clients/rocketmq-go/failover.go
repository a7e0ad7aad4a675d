package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
)

// failover works while somebody kills brokers: see ../failover/Failover.java, whose commands and lines these are.
type failover struct {
	servers primitive.NamesrvAddr
	run     string
	stopped atomic.Bool
	again   atomic.Int64
	threads sync.WaitGroup

	lock    sync.Mutex
	wanted  map[string]map[string]int
	stored  map[string]map[string]map[string]bool
	faults  []string
	sent    int64
	lastOk  time.Time
	longest time.Duration
}

// always ends half of its transactions at once and the others when it is asked.
type always struct{}

func (always) ExecuteLocalTransaction(m *primitive.Message) primitive.LocalTransactionState {
	if m.Body[len(m.Body)-1]%2 == 0 {
		return primitive.CommitMessageState
	}
	return primitive.UnknowState
}

func (always) CheckLocalTransaction(*primitive.MessageExt) primitive.LocalTransactionState {
	return primitive.CommitMessageState
}

func runFailover(servers, run string) {
	f := &failover{
		servers: strings.Split(servers, ";"), run: run,
		wanted: map[string]map[string]int{}, stored: map[string]map[string]map[string]bool{},
		lastOk: time.Now(),
	}
	options := func(group string) []producer.Option {
		return []producer.Option{
			producer.WithNameServer(f.servers), producer.WithGroupName(run + group), producer.WithInstanceName(run + group),
		}
	}
	plain, err := rocketmq.NewProducer(options("-P")...)
	must(err, "new producer")
	must(plain.Start(), "start producer")
	transactional, err := rocketmq.NewTransactionProducer(always{}, options("-T")...)
	must(err, "new producer")
	must(transactional.Start(), "start producer")

	sync := func(m *primitive.Message) (primitive.SendStatus, error) {
		result, err := plain.SendSync(context.Background(), m)
		if err != nil {
			return 0, err
		}
		return result.Status, nil
	}
	kinds := []string{"sync", "delay", "half", "twice"}
	for _, kind := range kinds {
		f.store(kind, "first", 0, sync)
	}
	for _, kind := range kinds {
		f.consume("cluster", kind)
	}
	f.consume("broadcast", "sync", consumer.WithConsumerModel(consumer.BroadCasting))
	for n := 0; n < 3; n++ {
		f.loop("sync", fmt.Sprintf("s%d", n), 0, 5*time.Millisecond, sync)
	}
	f.loop("delay", "d", 1, 30*time.Millisecond, sync)
	f.loop("half", "h", 0, 20*time.Millisecond, func(m *primitive.Message) (primitive.SendStatus, error) {
		result, err := transactional.SendMessageInTransaction(context.Background(), m)
		if err != nil {
			return 0, err
		}
		return result.Status, nil
	})
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() && lines.Text() != "end" {
		switch line := lines.Text(); {
		case line == "ok":
			f.lock.Lock()
			longest := max(f.longest, time.Since(f.lastOk))
			f.longest = 0
			fmt.Printf("ok %d %d\n", f.sent, longest.Milliseconds())
			f.lock.Unlock()
		case strings.HasPrefix(line, "twice"):
			for n := 0; n < 12; n++ {
				m := message(f.topic("twice"), fmt.Sprintf("%s-%d", line, n))
				_, first := sync(m)
				_, second := sync(m)
				if first == nil && second == nil {
					f.want("twice", string(m.Body), 2)
				}
			}
			fmt.Println("twice", line)
		}
	}
	f.stopped.Store(true)
	f.threads.Wait()
	f.judge()
	f.lock.Lock()
	defer f.lock.Unlock()
	for _, fault := range f.faults {
		fmt.Println(" ", fault)
	}
	word, code := "passed", 0
	if len(f.faults) > 0 {
		word, code = "FAILED", 1
	}
	fmt.Printf("%s sent %d, sent again by the program %d, faults %d\n", word, f.sent, f.again.Load(), len(f.faults))
	// The client leaves goroutines behind.
	os.Exit(code)
}

func max(a, b time.Duration) time.Duration {
	if a > b {
		return a
	}
	return b
}

func (f *failover) topic(kind string) string { return f.run + "-" + kind }

func (f *failover) fault(format string, values ...any) {
	f.lock.Lock()
	defer f.lock.Unlock()
	f.faults = append(f.faults, fmt.Sprintf(format, values...))
}

func (f *failover) want(kind, body string, times int) {
	f.lock.Lock()
	defer f.lock.Unlock()
	if f.wanted[kind] == nil {
		f.wanted[kind] = map[string]int{}
	}
	f.wanted[kind][body] = times
}

type sender func(*primitive.Message) (primitive.SendStatus, error)

// store sends one message until it is stored, the same object each time.
func (f *failover) store(kind, body string, level int, send sender) {
	m := message(f.topic(kind), body)
	if level > 0 {
		m.WithDelayTimeLevel(level)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		status, err := send(m)
		if err == nil && status == primitive.SendOK {
			break
		}
		f.again.Add(1)
		fmt.Fprintln(os.Stderr, "send again:", kind, body, status, err)
		if time.Now().After(deadline) {
			f.fault("%s was never stored: %v %v", body, status, err)
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	f.want(kind, body, 1)
	f.lock.Lock()
	defer f.lock.Unlock()
	f.sent++
	f.longest = max(f.longest, time.Since(f.lastOk))
	f.lastOk = time.Now()
}

func (f *failover) loop(kind, name string, level int, pause time.Duration, send sender) {
	f.threads.Add(1)
	go func() {
		defer f.threads.Done()
		for n := 0; !f.stopped.Load(); n++ {
			f.store(kind, fmt.Sprintf("%s-%06d", name, n), level, send)
			time.Sleep(pause)
		}
	}()
}

// consume notes the place of each body that comes: one that comes again has its old place, one that was stored twice has two.
func (f *failover) consume(group, kind string, more ...consumer.Option) {
	options := append([]consumer.Option{
		consumer.WithNameServer(f.servers), consumer.WithGroupName(f.run + "-" + group + "-" + kind),
		consumer.WithInstance(f.run + "-" + group + "-" + kind),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset),
	}, more...)
	made, err := rocketmq.NewPushConsumer(options...)
	must(err, "new consumer")
	sink := group + " " + kind
	f.stored[sink] = map[string]map[string]bool{}
	take := func(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		f.lock.Lock()
		defer f.lock.Unlock()
		for _, m := range messages {
			body := string(m.Body)
			if f.stored[sink][body] == nil {
				f.stored[sink][body] = map[string]bool{}
			}
			f.stored[sink][body][fmt.Sprint(m.Queue.QueueId, "/", m.QueueOffset)] = true
		}
		return consumer.ConsumeSuccess, nil
	}
	must(made.Subscribe(f.topic(kind), consumer.MessageSelector{Type: consumer.TAG, Expression: "*"}, take), "subscribe")
	must(made.Start(), "start consumer")
}

// open counts the bodies that stand fewer or more times in a group's topic than they should.
func (f *failover) open(sink string) (few, many int, example string) {
	f.lock.Lock()
	defer f.lock.Unlock()
	for body, times := range f.wanted[strings.Fields(sink)[1]] {
		switch places := len(f.stored[sink][body]); {
		case places < times:
			few, example = few+1, body
		case places > times:
			many, example = many+1, body
		}
	}
	return few, many, example
}

func (f *failover) judge() {
	for sink := range f.stored {
		few, many, example := f.open(sink)
		for deadline := time.Now().Add(90 * time.Second); few > 0 && time.Now().Before(deadline); {
			time.Sleep(200 * time.Millisecond)
			few, many, example = f.open(sink)
		}
		fmt.Printf("group %s: %d messages, too few %d, too many %d\n", sink, len(f.wanted[strings.Fields(sink)[1]]), few, many)
		if few+many > 0 {
			f.fault("group %s: too few %d, too many %d, such as %s", sink, few, many, example)
		}
	}
}
