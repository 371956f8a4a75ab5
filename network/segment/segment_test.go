package segment

import "testing"

func TestTable(t *testing.T) {
	table := New()
	a, b, c := table.Number([]uint32{1, 2}), table.Number([]uint32{2, 3}), table.Number([]uint32{300})
	if a != 1 || b != 2 || c != 3 || table.Number([]uint32{1, 2}) != a {
		t.Errorf("numbers %d, %d, %d", a, b, c)
	}
	if !table.Share(a, b) || table.Share(a, c) || !table.Share(c, c) || table.Share(a, 99) {
		t.Error("wrong who shares a network")
	}
	table.Keep(map[uint32]bool{b: true})
	if table.Len() != 1 || len(table.numbers) != 1 || len(table.Networks(b)) != 2 || table.Networks(a) != nil {
		t.Errorf("%d are left: %v", table.Len(), table.networks)
	}
	if again := table.Number([]uint32{1, 2}); again != 4 {
		t.Errorf("a forgotten set is %d: a number is used twice", again)
	}
}
