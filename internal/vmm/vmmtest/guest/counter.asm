# A guest without an operating system, for contract tests of engines: it counts in memory, so that freezing, thawing and dirty pages can be seen from
# outside in a few milliseconds. An ELF file with a PVH note, which is entered in 32-bit protected mode without paging. guest/build assembles it.
	.section .note.pvh, "a", @note
	.balign 4
	.long 4, 4, 18			# name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
	.asciz "Xen"
	.long start

	.text
	.code32
	.globl start
start:
	cli
	movl $0x400000, %edi		# the counter
	movl $0x800000, %esi		# a page is written here each time the counter passes a multiple of 2^20, up to 256 of them
count:
	incl (%edi)
	testl $0xfffff, (%edi)
	jnz count
	movw $0x3f8, %dx		# one dot on the serial port
	movb $'.', %al
	outb %al, %dx
	cmpl $0x900000, %esi
	jae count
	movl (%edi), %eax
	movl %eax, (%esi)
	addl $0x1000, %esi
	jmp count
