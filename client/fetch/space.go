package fetch

// SpareSpace is how many bytes a download leaves free for the rest of the
// system.
const SpareSpace = spareSpace

// FreeSpace is how many bytes a process like this one may still write in dir;
// false if the system does not say.
func FreeSpace(dir string) (int64, bool) { return freeSpace(dir) }
