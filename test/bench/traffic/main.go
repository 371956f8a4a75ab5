// Command traffic is the two ends of the network rows of the benchmark: a sink, and a client that compares addresses.
//
//	traffic serve :9000
//	traffic compare ROUNDS ADDRESS ADDRESS…   prints one line of JSON per address
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"time"
)

const (
	streamTime = 300 * time.Millisecond
	shortConns = 1000
)

// Result is what one address reached, the median of the rounds.
type Result struct {
	Address        string
	BytesPerSecond float64
	ConnsPerSecond float64
}

func main() {
	if err := command(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "traffic:", err)
		os.Exit(1)
	}
}

func command(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		return serve(args[1])
	case len(args) >= 3 && args[0] == "compare":
		rounds, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return compare(rounds, args[2:])
	}
	return fmt.Errorf("usage: traffic serve ADDRESS | traffic compare ROUNDS ADDRESS…")
}

// serve answers the first byte of each connection with one byte and swallows the rest.
func serve(address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			var first [1]byte
			if _, err := io.ReadFull(conn, first[:]); err != nil {
				return
			}
			if _, err := conn.Write(first[:]); err != nil {
				return
			}
			_, _ = io.CopyBuffer(io.Discard, struct{ io.Reader }{conn}, make([]byte, 256<<10))
		}()
	}
}

// compare measures the addresses in turn, round after round, each second round the other way round.
func compare(rounds int, addresses []string) error {
	streams, conns := map[string][]float64{}, map[string][]float64{}
	order := slices.Clone(addresses)
	for range rounds {
		slices.Reverse(order)
		for _, address := range order {
			// Names are looked up outside the measurement: the rows are about addresses.
			resolved, err := net.ResolveTCPAddr("tcp", address)
			if err != nil {
				return err
			}
			stream, err := stream(resolved.String())
			if err != nil {
				return err
			}
			short, err := short(resolved.String())
			if err != nil {
				return err
			}
			streams[address], conns[address] = append(streams[address], stream), append(conns[address], short)
		}
	}
	out := json.NewEncoder(os.Stdout)
	for _, address := range addresses {
		if err := out.Encode(Result{address, median(streams[address]), median(conns[address])}); err != nil {
			return err
		}
	}
	return nil
}

func stream(address string) (float64, error) {
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	began, sent, block := time.Now(), 0, make([]byte, 256<<10)
	for time.Since(began) < streamTime {
		n, err := conn.Write(block)
		if err != nil {
			return 0, err
		}
		sent += n
	}
	return float64(sent) / time.Since(began).Seconds(), nil
}

func short(address string) (float64, error) {
	began := time.Now()
	var answer [1]byte
	for range shortConns {
		conn, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err != nil {
			return 0, err
		}
		if _, err := conn.Write(answer[:]); err != nil {
			return 0, err
		}
		if _, err := io.ReadFull(conn, answer[:]); err != nil {
			return 0, err
		}
		conn.Close()
	}
	return shortConns / time.Since(began).Seconds(), nil
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}
