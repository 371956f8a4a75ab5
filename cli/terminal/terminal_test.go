package terminal_test

import (
	"strings"
	"testing"

	"github.com/gantryd/gantry/cli/terminal"
)

func TestLiveTakesBackExactlyWhatItDrew(t *testing.T) {
	var b strings.Builder
	live := terminal.NewLiveOn(&b, 10, 4)
	live.Draw([]string{"one", "two"})
	live.Draw([]string{"a long line of text", "\x1b[31mred and long too\x1b[0m"})
	live.Draw([]string{"1", "2", "3", "4", "5"})
	live.Above("said")
	live.Clear()
	want := "one\ntwo\n" +
		"\x1b[2A\r\x1b[Ja long li…\n\x1b[31mred and l…\x1b[0m\n" +
		"\x1b[2A\r\x1b[J1\n2\n…\n" +
		"\x1b[3A\r\x1b[Jsaid\n"
	if b.String() != want {
		t.Errorf("\n got %q\nwant %q", b.String(), want)
	}
}
