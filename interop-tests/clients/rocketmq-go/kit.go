// Package main drives Apache's Go client against a RocketMQ broker: see ../README.md for the environment and the output.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"sort"
	"strings"
	"sync/atomic"
	"time"
)

// closer runs what was deferred, last first, when a scenario ends.
type closer struct{ actions []func() }

func (c *closer) later(action func()) { c.actions = append(c.actions, action) }

func (c *closer) close() {
	for i := len(c.actions) - 1; i >= 0; i-- {
		c.actions[i]()
	}
}

type scenario struct {
	seconds int
	run     func(*closer)
}

// skip ends a scenario that this client has no calls for.
type skip string

// failure ends a scenario that did not hold.
type failure string

var (
	scenarios = map[string]scenario{}
	order     []string
	notes     = map[string]string{}
	unique    atomic.Int64
)

const (
	usual   = 60
	restart = 180
)

func register(name string, seconds int, run func(*closer)) {
	scenarios[name] = scenario{seconds, run}
	order = append(order, name)
}

func lacks(name, reason string) {
	register(name, usual, func(*closer) { panic(skip(reason)) })
}

func onControl() bool { return os.Getenv("INTEROP_TARGET") == "control" }

func nameServer() string { return os.Getenv("INTEROP_NAME_SERVER") }

func uniqueName(kind string) string {
	return fmt.Sprintf("interop-go-%s-%x-%d", kind, time.Now().UnixMilli()&0xffffffff, unique.Add(1))
}

func check(condition bool, format string, values ...any) {
	if !condition {
		panic(failure(fmt.Sprintf(format, values...)))
	}
}

func must(err error, what string) { check(err == nil, "%s: %v", what, err) }

func equal(actual, expected any, what string) {
	check(fmt.Sprint(actual) == fmt.Sprint(expected), "%s: expected %v, got %v", what, expected, actual)
}

// waitUntil waits for a condition that other goroutines bring about.
func waitUntil(seconds int, condition func() bool, what func() string) {
	if onControl() && seconds < 60 {
		seconds = 60
	}
	deadline := time.Now().Add(time.Duration(seconds) * time.Second)
	for !condition() {
		check(time.Now().Before(deadline), "waited %d s for %s", seconds, what())
		time.Sleep(5 * time.Millisecond)
	}
}

func sorted(list []string) []string {
	list = append([]string{}, list...)
	sort.Strings(list)
	return list
}

func needsRestart() {
	if os.Getenv("DASSIE_RESTART") == "" {
		panic(skip("no restart hook (DASSIE_RESTART is not set)"))
	}
}

func restartBroker(how string) {
	out, err := exec.Command("sh", "-c", os.Getenv("DASSIE_RESTART")+" "+how).CombinedOutput()
	check(err == nil, "restart hook: %v %s", err, out)
}

func runOne(name string) string {
	found, known := scenarios[name]
	if !known {
		return "FAIL " + name + ": this client has no such scenario"
	}
	if os.Getenv("INTEROP_TLS_CA") != "" {
		return "skip " + name + ": this client has no TLS"
	}
	done := make(chan string, 1)
	go func() {
		close := &closer{}
		defer func() {
			line := "ok " + name
			switch cause := recover().(type) {
			case nil:
				if note := notes[name]; note != "" {
					line += ": " + note
				}
			case skip:
				line = "skip " + name + ": " + string(cause)
			case failure:
				line = "FAIL " + name + ": " + strings.Join(strings.Fields(string(cause)), " ")
			default:
				line = fmt.Sprintf("FAIL %s: %v", name, cause)
			}
			close.close()
			done <- line
		}()
		found.run(close)
	}()
	seconds := found.seconds
	if onControl() {
		seconds *= 3
	}
	select {
	case line := <-done:
		return line
	case <-time.After(time.Duration(seconds) * time.Second):
		return fmt.Sprintf("FAIL %s: not done after %d s", name, seconds)
	}
}

func runAll() {
	names := order
	if only := os.Getenv("INTEROP_ONLY"); only != "" {
		names = strings.Split(only, ",")
	}
	status := 0
	for _, name := range names {
		line := runOne(name)
		fmt.Println(line)
		if strings.HasPrefix(line, "FAIL") {
			status = 1
		}
	}
	// The clients leave goroutines behind.
	os.Exit(status)
}
