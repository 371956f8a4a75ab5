// Command worker moves votes from the Redis stream to PostgreSQL.
//
// A vote is acknowledged to the queue after the database has committed it. If a worker dies in between, another
// one claims the vote and stores it again, which changes nothing.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	_ "github.com/lib/pq"
)

const (
	stream     = "votes"
	group      = "workers"
	healthAddr = "127.0.0.1:9000"
	// An entry another worker has held this long without acknowledging it is taken over.
	claimAfter = 5 * time.Second
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("worker: ")
	if len(os.Args) > 1 && os.Args[1] == "health" {
		if err := checkHealth(); err != nil {
			log.Fatal(err)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var lastPass atomic.Int64
	go serveHealth(&lastPass)
	wait := 100 * time.Millisecond
	for ctx.Err() == nil {
		began := time.Now()
		if err := run(ctx, &lastPass); err != nil && ctx.Err() == nil {
			log.Print(err)
		}
		if time.Since(began) > 10*time.Second {
			wait = 100 * time.Millisecond
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		if wait *= 2; wait > 3*time.Second {
			wait = 3 * time.Second
		}
	}
}

// run moves votes until a connection breaks or ctx ends.
func run(ctx context.Context, lastPass *atomic.Int64) error {
	db, err := openDB()
	if err != nil {
		return err
	}
	defer db.Close()
	queue, err := dialRedis(env("REDIS_ADDR", "redis:6379"))
	if err != nil {
		return err
	}
	defer queue.Close()
	if _, err := queue.Do("XGROUP", "CREATE", stream, group, "0", "MKSTREAM"); err != nil && !strings.Contains(err.Error(), "BUSYGROUP") {
		return err
	}
	name, _ := os.Hostname()
	log.Printf("%s moves votes", name)
	for ctx.Err() == nil {
		entries, err := next(queue, name)
		if err != nil {
			return err
		}
		lastPass.Store(time.Now().UnixNano())
		if len(entries) == 0 {
			continue
		}
		if err := store(ctx, db, entries); err != nil {
			return err
		}
		ack := []string{"XACK", stream, group}
		for _, e := range entries {
			ack = append(ack, e.id)
		}
		if _, err := queue.Do(ack...); err != nil {
			return err
		}
	}
	return nil
}

// vote is one entry of the stream.
type vote struct {
	id            string
	voter, choice string
}

// next takes over what a dead worker left, else waits up to a second for new votes.
func next(queue *redisConn, name string) ([]vote, error) {
	min := strconv.FormatInt(claimAfter.Milliseconds(), 10)
	answer, err := queue.Do("XAUTOCLAIM", stream, group, name, min, "0", "COUNT", "100")
	if err != nil {
		return nil, err
	}
	if claimed := votes(at(answer, 1)); len(claimed) > 0 {
		log.Printf("took over %d votes", len(claimed))
		return claimed, nil
	}
	answer, err = queue.Do("XREADGROUP", "GROUP", group, name, "COUNT", "100", "BLOCK", "1000", "STREAMS", stream, ">")
	if err != nil {
		return nil, err
	}
	return votes(at(at(answer, 0), 1)), nil
}

// votes reads [[id, [field, value, ...]], ...].
func votes(list interface{}) []vote {
	items, _ := list.([]interface{})
	var out []vote
	for _, item := range items {
		id, _ := at(item, 0).(string)
		fields, _ := at(item, 1).([]interface{})
		v := vote{id: id}
		for i := 0; i+1 < len(fields); i += 2 {
			value, _ := fields[i+1].(string)
			switch fields[i] {
			case "voter":
				v.voter = value
			case "vote":
				v.choice = value
			}
		}
		if id != "" {
			out = append(out, v)
		}
	}
	return out
}

// at is the i-th element of a list, or nil.
func at(list interface{}, i int) interface{} {
	if items, ok := list.([]interface{}); ok && i < len(items) {
		return items[i]
	}
	return nil
}

func store(ctx context.Context, db *sql.DB, entries []vote) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	defer tx.Rollback()
	for _, v := range entries {
		var ms, seq int64
		if _, err := fmt.Sscanf(v.id, "%d-%d", &ms, &seq); err != nil || v.voter == "" {
			log.Printf("skipped malformed entry %q", v.id)
			continue
		}
		_, err := tx.ExecContext(ctx, `
			INSERT INTO votes (voter, choice, entry_ms, entry_seq) VALUES ($1, $2, $3, $4)
			ON CONFLICT (voter) DO UPDATE SET choice = excluded.choice, entry_ms = excluded.entry_ms, entry_seq = excluded.entry_seq
			WHERE (votes.entry_ms, votes.entry_seq) < (excluded.entry_ms, excluded.entry_seq)`,
			v.voter, v.choice, ms, seq)
		if err != nil {
			return fmt.Errorf("database: %w", err)
		}
	}
	if _, err := tx.ExecContext(ctx, "NOTIFY votes"); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	return nil
}

func openDB() (*sql.DB, error) {
	password, err := os.ReadFile(env("DB_PASSWORD_FILE", "/run/secrets/db_password"))
	if err != nil {
		return nil, fmt.Errorf("password of the database: %w", err)
	}
	quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(strings.TrimSpace(string(password)))
	db, err := sql.Open("postgres", fmt.Sprintf("host=%s user=postgres dbname=votes password='%s' sslmode=disable connect_timeout=3",
		env("DB_HOST", "db"), quoted))
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	if err := db.Ping(); err != nil {
		db.Close()
		return nil, fmt.Errorf("database: %w", err)
	}
	return db, nil
}

// serveHealth answers 200 while the worker talks to the queue.
func serveHealth(lastPass *atomic.Int64) {
	handler := func(w http.ResponseWriter, _ *http.Request) {
		if time.Since(time.Unix(0, lastPass.Load())) > 4*time.Second {
			http.Error(w, "does not reach the queue or the database", http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "ok\n")
	}
	log.Fatal(http.ListenAndServe(healthAddr, http.HandlerFunc(handler)))
}

func checkHealth() error {
	client := http.Client{Timeout: 2 * time.Second}
	res, err := client.Get("http://" + healthAddr)
	var opErr *net.OpError
	if errors.As(err, &opErr) {
		return opErr
	}
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(res.Body, 200))
		return errors.New(strings.TrimSpace(string(body)))
	}
	return nil
}

func env(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}
