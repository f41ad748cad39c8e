package protocol

// Request is what the driver asks of a guest's server. What is set is done in
// the order of the fields.
type Request struct {
	Prepare *Prepare `json:"prepare,omitempty"`
	Mount   string   `json:"mount,omitempty"` // an engine: mount the image with it
	Stop    bool     `json:"stop,omitempty"`  // kill all containers
	Grow    *Grow    `json:"grow,omitempty"`
	Run     []string `json:"run,omitempty"`    // run a program of the image in every container
	Frames  bool     `json:"frames,omitempty"` // of a process in each container
	Look    *LookAt  `json:"look,omitempty"`   // by a process in each container
	Memory  bool     `json:"memory,omitempty"`
}

// Prepare tells the server what all later requests are about. Caches are
// dropped.
type Prepare struct {
	Pool Pool `json:"pool"`
	// Manifest is a file with the image's regular files, "SIZE ADDRESS /PATH\0"
	// each, where ADDRESS is that of the file's bytes in the pool.
	Manifest string `json:"manifest"`
}

// Pool is the shared memory as one kernel sees it; the image lies at its
// beginning.
type Pool struct {
	Phys int64 `json:"phys"`
	Size int64 `json:"size"` // bytes
}

// Grow asks for as many containers with as many processes each, which all have
// touched all of the image when it is answered.
type Grow struct {
	Containers int `json:"containers"`
	Processes  int `json:"processes"`
}

// LookAt is the address of one byte in a file of at least 16 KiB.
type LookAt struct {
	Path   string `json:"path"`
	Offset int64  `json:"offset"`
}

// Response answers a Request.
type Response struct {
	Err    string   `json:"err,omitempty"`
	Output []string `json:"output,omitempty"` // of Run
	Frames []Frames `json:"frames,omitempty"`
	Look   []Look   `json:"look,omitempty"`
	Memory *Memory  `json:"memory,omitempty"`
}
