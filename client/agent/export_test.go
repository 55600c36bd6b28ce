package agent

// OnStep sets what is called before and after each step is written down.
func OnStep(f func(point string)) { atStep = f }
