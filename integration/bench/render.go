package main

func render(o *options) error { return nil }
