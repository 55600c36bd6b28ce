package main

// hangups: there is no such signal here.
func hangups() (wake <-chan struct{}, stop func()) { return nil, func() {} }
