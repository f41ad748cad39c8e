// Package protocol is what the driver of a guest and the agent in it say to
// each other: net/rpc over a virtio-serial port.
package protocol

// Port is the name of the virtio-serial port.
const Port = "daxfs-lab"

// Mount tags of the 9p file systems.
const (
	TagRoot   = "root"   // the machine's root file system
	TagShared = "shared" // Setup.Shared
)

// SetupPath is where the initrd holds a Setup, in JSON.
const SetupPath = "/setup.json"

// Setup says what the agent does before it serves.
type Setup struct {
	// Modules are kernel modules' paths in the initrd, in the order to load.
	Modules []string
	// ModuleDir is the directory outside that /lib/modules/RELEASE links to.
	ModuleDir string
	// Shared is the directory to mount read-write, "" for none.
	Shared string
	// Hostname names the guest.
	Hostname string
	// Path is PATH of the guest's commands.
	Path string
}

// Methods of the service.
const (
	Ready    = "Agent.Ready"    // Nothing → Nothing
	Start    = "Agent.Start"    // Command → ID
	Output   = "Agent.Output"   // ID → Progress, when there is something new
	Stop     = "Agent.Stop"     // ID → Nothing
	PowerOff = "Agent.PowerOff" // Nothing → Nothing, or no answer
)

// Nothing is an empty argument or result.
type Nothing struct{}

// Command is a program to run.
type Command struct {
	Args []string
	Env  []string // added to the agent's own
	Dir  string
}

// ID names a started command.
type ID uint64

// Progress is what a command did since the last call. After one with Done the
// command's ID is void.
type Progress struct {
	Stdout, Stderr []byte
	Done           bool
	Code           int // exit status, or 128 + signal
}
