package instead

import "testing"

func TestCommand(t *testing.T) {
	for words, want := range map[[3]string]string{
		{"images"}:                   "gantry image ls",
		{"compose", "up"}:            "gantry up",
		{"compose", "config"}:        "gantry convert",
		{"docker", "ps"}:             "gantry ps",
		{"docker", "image", "load"}:  "gantry image import",
		{"container", "rename", "a"}: "a container keeps its name: gantry rm, and gantry run --name",
		{"service", "ls"}:            "gantry ls, and gantry ps",
		{"compose"}:                  "gantry --help",
	} {
		var list []string
		for _, w := range words {
			if w != "" {
				list = append(list, w)
			}
		}
		if got, ok := Command(list); got != want || !ok {
			t.Errorf("%v: %q, %v", list, got, ok)
		}
	}
	if hint, ok := Command([]string{"nonsense"}); ok {
		t.Errorf("nonsense: %q", hint)
	}
	if _, ok := Command(nil); ok {
		t.Error("nothing has an answer")
	}
}

func TestFlag(t *testing.T) {
	for _, flag := range [][2]string{{"gantry up", "--attach"}, {"gantry up", "-V"}, {"gantry node ls", "--format"}, {"gantry run", "--gpus"}} {
		if hint, ok := Flag(flag[0], flag[1]); hint == "" || !ok {
			t.Errorf("%v has no answer", flag)
		}
	}
	if hint, ok := Flag("gantry up", "--no-such-flag"); ok {
		t.Errorf("a flag that nobody knows: %q", hint)
	}
}
