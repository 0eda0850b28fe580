# The same guest as counter.asm for engines that enter a 64-bit ELF file as the 64-bit boot protocol of Linux says: in long mode, with the first gigabyte mapped
# where it is. It uses no instruction that a KVM without hardware virtualization, which emulates some of them, could not do; there it counts slowly, so that it
# writes its dots and pages more often. guest/build assembles it.
	.text
	.code64
	.globl start
start:
	cli
	movl $0x400000, %edi		# the counter
	movl $0x800000, %esi		# a page is written here each time the counter passes a multiple of 2^14, up to 256 of them
count:
	incl (%rdi)
	testl $0x3fff, (%rdi)
	jnz count
	movw $0x3f8, %dx		# one dot on the serial port
	movb $'.', %al
	outb %al, %dx
	cmpl $0x900000, %esi
	jae count
	movl (%rdi), %eax
	movl %eax, (%rsi)
	addl $0x1000, %esi
	jmp count
