package daxmem

// step is called at the points of docs/memory-model.md's tables at which tests
// kill a process. It does nothing otherwise.
var step = func(name string) {}

// Steps, by table. crashtable_test.go says to which rows they belong.
const (
	// Records.
	stepExtentWritten     = "extent written"
	stepSegmentWritten    = "segment written"
	stepRecordTaken       = "record taken"
	stepPayloadWritten    = "payload written"
	stepRecordIndexed     = "record indexed"
	stepRecordLive        = "record live"
	stepRegionSynced      = "region synced"
	stepRecordDurable     = "record durable"
	stepBeforeRetire      = "before retire"
	stepRecordRetired     = "record retired"
	stepRecordSkipped     = "record skipped" // its predecessor points past it, moves is not raised yet
	stepRecordUnlinked    = "record unlinked"
	stepRecordKept        = "record kept" // by a pin
	stepSpacePunched      = "space punched"
	stepRecordCleared     = "record cleared"
	stepRecordFree        = "record free"
	stepSpaceGivenBack    = "space given back"
	stepRegionGrown       = "region grown"
	stepPoolOpen          = "pool open"
	stepBeforeClean       = "before clean"
	stepPoolClean         = "pool clean"
	stepRecordQuarantined = "record quarantined"

	// Seats.
	stepSeatClaimed  = "seat claimed"
	stepLeaseWritten = "lease written"
	stepSeatHeld     = "seat held"
	stepSeatFound    = "seat found"
	stepPinSet       = "pin set"
	stepPinChecked   = "pin checked"
	stepBeforeUnpin  = "before unpin"
	stepPinCleared   = "pin cleared"
	stepSeatLeft     = "seat left"
	stepSeatEvicted  = "seat evicted"

	// Ownership.
	stepSeatTaken     = "seat taken"
	stepPoolAcquired  = "pool acquired"
	stepTakeoverBegun = "takeover begun"
	stepCatalogFenced = "catalog fenced"
	stepIndexBuilt    = "index built"
	stepPoolOwned     = "pool owned"
	stepPoolDisowned  = "pool disowned"

	// Mailbox.
	stepRequestOpened  = "request opened"
	stepRequestWritten = "request written"
	stepRequestSent    = "request sent"
	stepRequestTaken   = "request taken"
	stepBeforeReply    = "before reply"
	stepReplyWritten   = "reply written"
)
