//! What the process gives back to the system of its memory.
//!
//! Used by the agent's `server` module only, at quiet moments.

use std::ffi::{c_int, c_void};

/// Gives the pages back that hold nothing but freed memory. The allocator keeps them otherwise, as far as anything that is
/// in use lies behind them. Whoever allocates meanwhile waits for it: two milliseconds or so for each 10 MB that go back.
/// Does nothing with another C library than glibc.
pub fn release_free() {
    // SAFETY: it takes no pointer, locks what it touches, and changes no memory that is in use.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Gives the pages of the program's own constants back: what only the start read, such as relocations and the image of the
/// kernel programs, is some megabytes. What is used on comes again from the page cache when it is touched.
pub fn release_constants() {
    // SAFETY: the function keeps nothing of what it is given.
    unsafe { libc::dl_iterate_phdr(Some(release_constants_of), std::ptr::null_mut()) };
}

/// For `dl_iterate_phdr`, which begins with the program itself; anything but 0 ends it there.
unsafe extern "C" fn release_constants_of(info: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
    // SAFETY: dl_iterate_phdr hands over a valid description of a loaded object.
    let info = unsafe { &*info };
    // SAFETY: its headers are as many as it says, and stay mapped.
    let segments = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    // SAFETY: it only reads a number.
    let Ok(page) = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) else { return 1 };
    for segment in segments.iter().filter(|segment| segment.p_type == libc::PT_LOAD && segment.p_flags == libc::PF_R) {
        let begin = (info.dlpi_addr as usize).wrapping_add(segment.p_vaddr as usize);
        let (first, end) = (begin.next_multiple_of(page), (begin + segment.p_filesz as usize) / page * page);
        if first < end {
            // SAFETY: the pages are those of a private mapping of the program's file that was never writable: their
            // content is that of the file, from where they come again.
            unsafe { libc::madvise(first as *mut c_void, end - first, libc::MADV_DONTNEED) };
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_is_as_before() {
        const TEXT: &str = "a constant of this program";
        let kept: Vec<Box<[u8]>> = (0..200_u8).map(|byte| vec![byte; 4_000].into_boxed_slice()).collect();
        drop((0..200_u8).map(|byte| vec![byte; 4_000]).collect::<Vec<_>>());
        release_free();
        release_constants();
        for (byte, bytes) in (0..200_u8).zip(&kept) {
            assert!(bytes.iter().all(|one| *one == byte));
        }
        assert_eq!(TEXT.len(), 26);
        assert_eq!(TEXT.split(' ').next_back(), Some("program"));
    }
}
