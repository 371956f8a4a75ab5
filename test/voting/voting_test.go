// Package voting_test builds examples/voting, starts it, and uses it as people do: with a browser.
package voting_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/gantryd/gantry/test/lab"
)

func TestVoting(t *testing.T) {
	browser := findBrowser(t)
	n := lab.Machines(t, 1).Node(0)
	dir := copyExample(t)
	base := "debian:bookworm"
	if release, _ := os.ReadFile("/etc/os-release"); strings.Contains(string(release), "ID=ubuntu") {
		base = "ubuntu:noble"
	}
	t.Setenv("BASE", base)
	n.Gantry(t, "image", "bootstrap", base)
	n.GantryIn(t, dir, "up", "--timeout", "12m")
	for service, want := range map[string]int{"vote": 2, "redis": 1, "worker": 1, "db": 1, "result": 1} {
		n.AwaitReady(t, service, want)
	}

	vote := openPage(t, browser, "http://"+n.Address()+":8080/")
	result := openPage(t, browser, "http://"+n.Address()+":8081/")

	t.Run("votes are counted on the open result page", func(t *testing.T) {
		awaitCounts(t, result, 0, 0)
		cast(t, vote, "a")
		awaitCounts(t, result, 1, 0)
		cast(t, vote, "b") // the same browser changes its mind
		awaitCounts(t, result, 0, 1)
		cast(t, openPage(t, browser, "http://"+n.Address()+":8080/"), "a")
		awaitCounts(t, result, 1, 1)
	})
	t.Run("both instances serve", func(t *testing.T) { awaitServers(t, n, 2) })
	t.Run("worker and vote are scaled", func(t *testing.T) {
		n.GantryIn(t, dir, "scale", "worker=3", "vote=4")
		n.AwaitReady(t, "worker", 3)
		n.AwaitReady(t, "vote", 4)
		awaitServers(t, n, 4)
		castMany(t, n, 60)
		awaitCounts(t, result, 31, 31)
		n.GantryIn(t, dir, "scale", "worker=1", "vote=1")
		n.AwaitReady(t, "worker", 1)
		n.AwaitReady(t, "vote", 1)
		awaitServers(t, n, 1)
		castMany(t, n, 10)
		awaitCounts(t, result, 36, 36)
	})
	for _, service := range []string{"worker", "vote", "db"} {
		t.Run(service+" is killed and replaced", func(t *testing.T) {
			before := n.AwaitReady(t, service, 1)[0].Status.Pid
			n.GantryIn(t, dir, "kill", service+".1")
			lab.Eventually(t, time.Minute, "new process", func() error {
				if now := n.AwaitReady(t, service, 1)[0].Status.Pid; now == before {
					return fmt.Errorf("still process %d", now)
				}
				return nil
			})
		})
	}
	t.Run("no vote is lost", func(t *testing.T) {
		cast(t, vote, "a")
		awaitCounts(t, result, 37, 35)
	})
}

// findBrowser returns the path of Chromium.
func findBrowser(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	// Ubuntu's package is a snap, which installs nothing that a test could start.
	if release, _ := os.ReadFile("/etc/os-release"); !strings.Contains(string(release), "ID=debian\n") {
		t.Skip("no Chromium on this machine: put one on the PATH")
	}
	t.Fatal("no Chromium on this machine: apt-get install chromium")
	return ""
}

// copyExample copies examples/voting with a password of its own.
func copyExample(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "voting")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(lab.Top(t), "examples", "voting"))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "db_password.txt"), []byte("it's \"quoted\" \\ once\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "db", "entrypoint.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// openPage starts a browser with an empty profile, so with cookies of its own, and opens the page.
func openPage(t *testing.T, browser, address string) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(browser), chromedp.UserDataDir(t.TempDir()),
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.Flag("no-proxy-server", true), chromedp.Flag("disable-dev-shm-usage", true),
	)
	allocator, cancelAllocator := chromedp.NewExecAllocator(context.Background(), options...)
	page, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		_ = chromedp.Cancel(page)
		cancel()
		cancelAllocator()
	})
	if err := chromedp.Do(page, chromedp.Navigate(address), chromedp.WaitReady(chromedp.CSS("#instance"))); err != nil {
		t.Fatalf("open %s: %v", address, err)
	}
	return page
}

// cast clicks on a choice and waits for the page that confirms it.
func cast(t *testing.T, page context.Context, choice string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(page, 20*time.Second)
	defer cancel()
	err := chromedp.Do(ctx,
		chromedp.Click(chromedp.CSS("#"+choice)),
		chromedp.WaitVisible(chromedp.CSS(fmt.Sprintf(`#%s[aria-pressed="true"]`, choice))))
	if err != nil {
		t.Fatalf("vote for %s: %v", choice, err)
	}
}

// awaitCounts waits until the open result page, which is never reloaded, shows the counts.
func awaitCounts(t *testing.T, page context.Context, a, b int) {
	t.Helper()
	lab.Eventually(t, 30*time.Second, fmt.Sprintf("counts %d and %d", a, b), func() error {
		gotA, errA := chromedp.Run(page, chromedp.Text(chromedp.CSS("#count-a")))
		gotB, errB := chromedp.Run(page, chromedp.Text(chromedp.CSS("#count-b")))
		if errA != nil || errB != nil || gotA != strconv.Itoa(a) || gotB != strconv.Itoa(b) {
			return fmt.Errorf("the page shows %s and %s, %v", gotA, gotB, errors.Join(errA, errB))
		}
		return nil
	})
}

// awaitServers waits until exactly want instances serve the voting page.
func awaitServers(t *testing.T, n *lab.Node, want int) {
	t.Helper()
	lab.Eventually(t, 30*time.Second, fmt.Sprintf("%d instances serve", want), func() error {
		seen := map[string]int{}
		for range 8 * want {
			page, err := n.HTTPGet(":8080/")
			if err != nil {
				return err
			}
			_, rest, _ := strings.Cut(page, `id="instance">`)
			name, _, _ := strings.Cut(rest, "<")
			seen[name]++
		}
		if len(seen) != want {
			return fmt.Errorf("requests were served by %v", seen)
		}
		return nil
	})
}

// castMany casts votes of new voters, half for each choice, and wants every one acknowledged.
func castMany(t *testing.T, n *lab.Node, votes int) {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for i := range votes {
		choice := []string{"a", "b"}[i%2]
		res, err := client.PostForm("http://"+n.Address()+":8080/", url.Values{"vote": {choice}})
		if err != nil {
			t.Fatalf("vote %d: %v", i, err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Fatalf("vote %d: %s", i, res.Status)
		}
	}
}
