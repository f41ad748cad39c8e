// Package handoff tests "daxfsctl image handoff": what it prints boots guests
// whose root file system is an image of a pool, with initrds that initramfs-tools
// makes with the files in script/initramfs-tools, as users have them.
package handoff
