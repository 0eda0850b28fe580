# The guest of the KVM probe: 200 bytes of boot ROM that enter long mode, write and read memory, and report by the debug-exit port.
# A KVM that can't do this can't run a Linux guest. Assembled into guest.bin (a test does it again and compares):
#   as --64 -o guest.o guest.asm && objcopy -O binary -j .text guest.o guest.bin
.code16
start:
	cli
	lgdtl %cs:(gdtr - start)
	movl %cr0, %eax
	orb $1, %al
	movl %eax, %cr0
	ljmpl $8, $(0xffff0000 + pm - start)
.code32
pm:
	movw $16, %ax
	movw %ax, %ds
	movw %ax, %es
	# page tables: PML4 at 0x1000, one PDPT at 0x2000 with four 1 GiB pages
	movl $0x2003, 0x1000
	movl $0, 0x1004
	movl $0x83, %eax
	movl $0x2000, %edi
	movl $4, %ecx
1:	movl %eax, (%edi)
	movl $0, 4(%edi)
	addl $0x40000000, %eax
	addl $8, %edi
	loop 1b
	movl %cr4, %eax
	orl $0x20, %eax
	movl %eax, %cr4
	movl $0x1000, %eax
	movl %eax, %cr3
	movl $0xc0000080, %ecx
	rdmsr
	orl $0x100, %eax
	wrmsr
	movl %cr0, %eax
	orl $0x80000000, %eax
	movl %eax, %cr0
	ljmp $24, $(0xffff0000 + lm - start)
.code64
lm:
	# count in memory so that the guest's own pages are really used
	movl $1000, %ecx
	movl $0x3000, %edi
2:	addq $1, (%rdi)
	loop 2b
	cmpq $1000, (%rdi)
	jne 3f
	movw $0x501, %dx
	movb $0x2a, %al
	outb %al, %dx
3:	hlt
	jmp 3b
.balign 8
gdt:
	.quad 0
	.quad 0x00cf9b000000ffff
	.quad 0x00cf93000000ffff
	.quad 0x00af9b000000ffff
gdtr:
	.word gdtr - gdt - 1
	.long 0xffff0000 + gdt - start
end:
