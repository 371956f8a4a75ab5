// Package placement says where instances can be: what they take, what their service demands, what machines have left.
//
// NewState reads a snapshot of the store and State.Apply keeps it up to date by events; State.Why and State.Reasons say in
// words what keeps an instance from machines. The scheduler decides by it and the API explains by it, so that both always
// agree. Eligible is for global services. Nothing here writes; a State is not safe in parallel, everything else is pure.
package placement
