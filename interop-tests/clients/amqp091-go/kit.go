package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	usual       = 60 * time.Second
	restarting  = 180 * time.Second
	waitAtMost  = 10 * time.Second
	frameMax    = 131072
	virtualHost = "/"
)

// skip ends a scenario that can not run here.
type skip string

// failure ends a scenario that did not hold.
type failure string

type scenario struct {
	limit time.Duration
	run   func(*scene)
}

var (
	scenarios = map[string]scenario{}
	order     []string
	unique    atomic.Int64
)

func register(name string, limit time.Duration, run func(*scene)) {
	scenarios[name] = scenario{limit, run}
	order = append(order, name)
}

func check(condition bool, format string, values ...any) {
	if !condition {
		panic(failure(fmt.Sprintf(format, values...)))
	}
}

func must(err error) { check(err == nil, "%v", err) }

func shortened(value any) string {
	text := fmt.Sprint(value)
	if len(text) > 300 {
		return fmt.Sprintf("%s… (%d bytes)", text[:300], len(text))
	}
	return text
}

func equal(what string, actual, expected any) {
	check(fmt.Sprint(actual) == fmt.Sprint(expected), "%s: expected %s, got %s", what, shortened(expected), shortened(actual))
}

func waitUntil(what string, condition func() bool) {
	for deadline := time.Now().Add(waitAtMost); !condition(); time.Sleep(5 * time.Millisecond) {
		check(time.Now().Before(deadline), "waited %v for %s", waitAtMost, what)
	}
}

func sequence(count int) []string {
	bodies := make([]string, count)
	for i := range bodies {
		bodies[i] = fmt.Sprint("m", i)
	}
	return bodies
}

// scene is one scenario's connections and names. A queue and an exchange of each name are deleted at its end.
type scene struct {
	names       []string
	connections []*amqp.Connection
}

func address() string { return os.Getenv("INTEROP_AMQP") }

func (s *scene) name(kind string) string {
	name := fmt.Sprintf("interop.go.%s.%x.%d", kind, time.Now().UnixNano()&0xffffffff, unique.Add(1))
	s.names = append(s.names, name)
	return name
}

func (s *scene) dial(address string, config amqp.Config) (*amqp.Connection, error) {
	scheme := "amqp"
	if authority := os.Getenv("INTEROP_TLS_CA"); authority != "" {
		pem, err := os.ReadFile(authority)
		must(err)
		roots := x509.NewCertPool()
		check(roots.AppendCertsFromPEM(pem), "no certificate in %s", authority)
		scheme, config.TLSClientConfig = "amqps", &tls.Config{RootCAs: roots}
	}
	if config.SASL == nil {
		config.SASL = []amqp.Authentication{&amqp.PlainAuth{Username: "guest", Password: "guest"}}
	}
	if config.Vhost == "" {
		config.Vhost = virtualHost
	}
	config.Dial = amqp.DefaultDial(waitAtMost)
	connection, err := amqp.DialConfig(scheme+"://"+address, config)
	if err == nil {
		s.connections = append(s.connections, connection)
	}
	return connection, err
}

func (s *scene) connect(config amqp.Config) *amqp.Connection {
	connection, err := s.dial(address(), config)
	must(err)
	return connection
}

// channel opens a channel on a connection of its own.
func (s *scene) channel() *channel { return open(s.connect(amqp.Config{})) }

// confirmed is a channel whose publishes wait for their confirm.
func (s *scene) confirmed() *channel {
	c := s.channel()
	must(c.Confirm(false))
	c.confirms = true
	return c
}

func (s *scene) cleanUp() {
	for _, connection := range s.connections {
		_ = connection.Close()
	}
	if len(s.names) == 0 {
		return
	}
	last := &scene{}
	c := last.channel()
	for _, name := range s.names {
		_, err := c.QueueDelete(name, false, false, false)
		must(err)
		must(c.ExchangeDelete(name, false, false))
	}
	must(last.connections[0].Close())
}

func (s *scene) queueExists(queue string) bool {
	c := s.channel()
	_, err := c.QueueDeclarePassive(queue, false, false, false, false, nil)
	return found(c, err)
}

func (s *scene) exchangeExists(exchange string) bool {
	c := s.channel()
	return found(c, c.ExchangeDeclarePassive(exchange, "direct", false, false, false, false, nil))
}

func found(c *channel, err error) bool {
	if err != nil {
		equal("reply code", err.(*amqp.Error).Code, 404)
	}
	_ = c.connection.Close()
	return err == nil
}

func needsRestart() {
	if os.Getenv("DASSIE_RESTART") == "" {
		panic(skip("no restart hook (DASSIE_RESTART is not set)"))
	}
}

func (s *scene) restart(how string) {
	out, err := exec.Command("sh", "-c", os.Getenv("DASSIE_RESTART")+" "+how).CombinedOutput()
	check(err == nil, "restart hook: %v %s", err, out)
	s.connections = nil
}

// channel is the client's channel with what the scenarios do all the time.
type channel struct {
	*amqp.Channel
	connection *amqp.Connection
	closed     chan *amqp.Error
	confirms   bool
}

func open(connection *amqp.Connection) *channel {
	c, err := connection.Channel()
	must(err)
	return &channel{c, connection, c.NotifyClose(make(chan *amqp.Error, 1)), false}
}

type args = amqp.Table

// declare takes the flags durable, auto-delete, exclusive and passive.
func (c *channel) declare(queue, flags string, arguments args) (amqp.Queue, error) {
	has := func(flag string) bool { return strings.Contains(flags, flag) }
	if has("passive") {
		return c.QueueDeclarePassive(queue, false, false, false, false, arguments)
	}
	return c.QueueDeclare(queue, has("durable"), has("auto-delete"), has("exclusive"), false, arguments)
}

func (c *channel) queue(name, flags string) string {
	declared, err := c.declare(name, flags, nil)
	must(err)
	return declared.Name
}

func (c *channel) exchange(name, kind, flags string) string {
	must(c.declareExchange(name, kind, flags))
	return name
}

func (c *channel) declareExchange(name, kind, flags string) error {
	has := func(flag string) bool { return strings.Contains(flags, flag) }
	return c.ExchangeDeclare(name, kind, has("durable"), has("auto-delete"), has("internal"), false, nil)
}

func (c *channel) bind(queue, exchange, key string) {
	must(c.QueueBind(queue, key, exchange, false, nil))
}

func (c *channel) send(exchange, key string, message amqp.Publishing) error {
	deferred, err := c.PublishWithDeferredConfirm(exchange, key, false, false, message)
	if err != nil || deferred == nil {
		return err
	}
	limit, cancel := context.WithTimeout(context.Background(), waitAtMost)
	defer cancel()
	acked, err := deferred.WaitContext(limit)
	if err == nil && !acked {
		err = fmt.Errorf("not confirmed")
	}
	return err
}

func (c *channel) publish(queue string, bodies ...string) { c.publishTo("", queue, bodies...) }

func (c *channel) publishTo(exchange, key string, bodies ...string) {
	for _, body := range bodies {
		must(c.send(exchange, key, amqp.Publishing{Body: []byte(body)}))
	}
}

func (c *channel) persist(exchange, key string, bodies ...string) {
	for _, body := range bodies {
		must(c.send(exchange, key, amqp.Publishing{Body: []byte(body), DeliveryMode: amqp.Persistent}))
	}
}

// get is nil when the queue is empty.
func (c *channel) get(queue string, autoAck bool) *amqp.Delivery {
	message, ok, err := c.Get(queue, autoAck)
	must(err)
	if !ok {
		return nil
	}
	return &message
}

// drain removes everything ready and returns the bodies.
func (c *channel) drain(queue string) []string {
	bodies := []string{}
	for message := c.get(queue, true); message != nil; message = c.get(queue, true) {
		bodies = append(bodies, string(message.Body))
	}
	return bodies
}

func (c *channel) ready(queue string) int {
	declared, err := c.declare(queue, "passive", nil)
	must(err)
	return declared.Messages
}

func (c *channel) waitReady(queue string, count int) {
	waitUntil(fmt.Sprintf("%d ready messages in %s", count, queue), func() bool { return c.ready(queue) == count })
}

// refused runs what the broker must answer by closing the channel (or its connection) with this code and text. The
// notification tells, so what the calls themselves return does not matter.
func (c *channel) refused(code int, text string, attempt func(*channel)) {
	attempt(c)
	select {
	case closed := <-c.closed:
		check(closed != nil, "expected %d %s, but the channel was closed without a reason", code, text)
		check(closed.Code == code && strings.Contains(closed.Reason, text), "expected %d %s, got %d %s", code, text,
			closed.Code, closed.Reason)
	case <-time.After(waitAtMost):
		check(false, "expected %d %s, but nothing was refused", code, text)
	}
}

// inbox is a consumer and what it has received so far.
type inbox struct {
	channel  *channel
	tag      string
	lock     sync.Mutex
	messages []amqp.Delivery
}

func (c *channel) consume(queue string, autoAck, exclusive bool) *inbox {
	tag := fmt.Sprint("consumer-", unique.Add(1))
	deliveries, err := c.Consume(queue, tag, autoAck, exclusive, false, false, nil)
	must(err)
	box := &inbox{channel: c, tag: tag}
	go func() {
		for message := range deliveries {
			box.lock.Lock()
			box.messages = append(box.messages, message)
			box.lock.Unlock()
		}
	}()
	return box
}

func (b *inbox) all() []amqp.Delivery {
	b.lock.Lock()
	defer b.lock.Unlock()
	return append([]amqp.Delivery{}, b.messages...)
}

func (b *inbox) count() int { return len(b.all()) }

// wait returns all messages as soon as there are `count`, and no more.
func (b *inbox) wait(count int) []amqp.Delivery {
	waitUntil(fmt.Sprint(count, " messages"), func() bool { return b.count() >= count })
	messages := b.all()
	equal("number of messages received", len(messages), count)
	return messages
}

func (b *inbox) cancel() { must(b.channel.Cancel(b.tag, false)) }

func bodies(messages []amqp.Delivery) []string {
	list := []string{}
	for _, message := range messages {
		list = append(list, string(message.Body))
	}
	return list
}

// outline is the bodies, those delivered again with a mark.
func outline(messages []amqp.Delivery) []string {
	list := []string{}
	for _, message := range messages {
		mark := ""
		if message.Redelivered {
			mark = "+"
		}
		list = append(list, string(message.Body)+mark)
	}
	return list
}

// proxy forwards one connection, so that it can be cut as a failing network would.
type proxy struct {
	listener net.Listener
	lock     sync.Mutex
	ends     []net.Conn
}

func newProxy(target string) *proxy {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	p := &proxy{listener: listener}
	go func() {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", target)
		if err != nil {
			return
		}
		p.lock.Lock()
		p.ends = []net.Conn{client, server}
		p.lock.Unlock()
		go pump(client, server)
		go pump(server, client)
	}()
	return p
}

func pump(from, to net.Conn) {
	buffer := make([]byte, 65536)
	for {
		count, err := from.Read(buffer)
		if err != nil {
			return
		}
		if _, err := to.Write(buffer[:count]); err != nil {
			return
		}
	}
}

func (p *proxy) cut() {
	_ = p.listener.Close()
	p.lock.Lock()
	defer p.lock.Unlock()
	for _, end := range p.ends {
		_ = end.Close()
	}
}

// topicTable reads the table that all clients share: lines `key: value value`, `""` for an empty word.
func topicTable() (patterns []string, rows [][]string) {
	file, err := os.Open(filepath.Join(os.Getenv("INTEROP_TABLES"), "topic"))
	must(err)
	defer file.Close()
	word := func(text string) string { return strings.ReplaceAll(text, `""`, "") }
	for lines := bufio.NewScanner(file); lines.Scan(); {
		key, words, ok := strings.Cut(lines.Text(), ":")
		if !ok || strings.HasPrefix(key, "#") {
			continue
		}
		row := []string{word(strings.TrimSpace(key))}
		for _, value := range strings.Fields(words) {
			row = append(row, word(value))
		}
		if row[0] == "patterns" {
			patterns = row[1:]
		} else {
			rows = append(rows, row)
		}
	}
	return patterns, rows
}

func runOne(name string) string {
	found, known := scenarios[name]
	if !known {
		return "FAIL " + name + ": this client has no such scenario"
	}
	done := make(chan string, 1)
	go func() {
		stage := &scene{}
		line := guarded(name, func() { found.run(stage) })
		if cleaned := guarded(name, stage.cleanUp); strings.HasPrefix(line, "ok") {
			line = cleaned
		}
		done <- line
	}()
	select {
	case line := <-done:
		return line
	case <-time.After(found.limit):
		return fmt.Sprintf("FAIL %s: not done after %v", name, found.limit)
	}
}

func guarded(name string, run func()) (line string) {
	defer func() {
		switch cause := recover().(type) {
		case nil:
			line = "ok " + name
		case skip:
			line = "skip " + name + ": " + string(cause)
		default:
			line = "FAIL " + name + ": " + strings.Join(strings.Fields(fmt.Sprint(cause)), " ")
		}
	}()
	run()
	return
}

func runAll() {
	names, status := order, 0
	if only := os.Getenv("INTEROP_ONLY"); only != "" {
		names = strings.Split(only, ",")
	}
	for _, name := range names {
		line := runOne(name)
		fmt.Println(line)
		if strings.HasPrefix(line, "FAIL") {
			status = 1
		}
	}
	os.Exit(status)
}
