package cli

import "testing"

func TestSplitRemote(t *testing.T) {
	for arg, want := range map[string]string{
		"web:/a": "web /a", "shop/web.1:/a:b": "shop/web.1 /a:b", "web:": "web ",
		"./web:/a": "", "/abs:x": "", "plain": "", "-": "", ":/a": "", "../x:y": "",
	} {
		target, path, remote := splitRemote(arg)
		got := ""
		if remote {
			got = target + " " + path
		}
		if got != want {
			t.Errorf("%q: %q, want %q", arg, got, want)
		}
	}
}
