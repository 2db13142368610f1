package compose

// action is what is to be done at one path.
type action int

const (
	actNothing  action = iota
	actPut             // lay out what the release has, over what is there
	actPutAside        // the same, and keep what is there: it is not the agent's
	actMake            // make a directory
	actSet             // give a directory its owner and mode
	actSetEmpty        // the same, if it is empty: the engine made it for a mount
	actRemove          // remove what the release lacks
	actClear           // remove what is in the way of another type, then put or make
)

// decide returns what to do where the disk has have, the release has want and the
// agent laid the entry laid; each is nil for nothing. Keeps tells that what somebody
// else changed since stays as it is.
func decide(have, want, laid *entry) (act action, keeps bool) {
	switch {
	case want == nil:
		ours := have != nil && laid != nil && have.holds(*laid)
		if ours {
			return actRemove, false
		}
		return actNothing, have != nil && laid != nil
	case have == nil && want.Type == typeDir:
		return actMake, false
	case have == nil:
		return actPut, false
	case have.is(*want):
		return actNothing, false
	case want.Type == typeDir && have.Type == typeDir:
		// Whoever changed its owner or mode since had a reason: a database does so.
		switch {
		case laid == nil:
			return actSetEmpty, false
		case have.is(*laid):
			return actSet, false
		}
		return actNothing, false
	case want.Type == typeDir || have.Type == typeDir:
		return actClear, false
	case laid != nil && laid.is(*want) && have.holds(*want):
		return actNothing, false // so it is with the owner and mode of a file
	case laid != nil && have.holds(*laid):
		return actPut, false
	case laid != nil && laid.holds(*want) && have.Type == typeFile && want.Type == typeFile:
		return actNothing, true
	default:
		return actPutAside, false
	}
}
