//! The file tools, and that they stay inside.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use guest_protocol::{Block, CallId, CallSpec, Exit, FileOp, FileSpec, OutputLimits, Root, Work};

use crate::harness::*;

fn read(path: &str) -> FileOp {
    FileOp::Read { path: path.to_owned(), lines: None }
}

fn read_lines(path: &str, start: i64, end: i64) -> FileOp {
    FileOp::Read { path: path.to_owned(), lines: Some((start, end)) }
}

fn write(path: &str, content: &str) -> FileOp {
    FileOp::Write { path: path.to_owned(), content: content.into() }
}

fn edit(path: &str, old: &str, new: &str, replace_all: bool) -> FileOp {
    FileOp::Edit { path: path.into(), old: old.into(), new: new.into(), replace_all }
}

fn glob(pattern: &str, path: Option<&str>) -> FileOp {
    FileOp::Glob { pattern: pattern.to_owned(), path: path.map(str::to_owned) }
}

fn grep(pattern: &str, path: Option<&str>) -> FileOp {
    FileOp::Grep { pattern: pattern.to_owned(), path: path.map(str::to_owned) }
}

#[tokio::test]
async fn read_gives_text_verbatim_and_ranges_by_line() {
    let Some(sandbox) = sandbox("read_gives_text_verbatim_and_ranges_by_line").await else {
        return;
    };
    sandbox.put("crlf", "a\r\nb\n\nlast");
    sandbox.put("empty", "");
    for (op, want) in [
        (read("crlf"), "a\r\nb\n\nlast"),
        (read("./sub/../crlf"), "a\r\nb\n\nlast"),
        (read("empty"), ""),
        (read_lines("crlf", 1, 1), "a\r\n"),
        (read_lines("crlf", -5, 2), "a\r\nb\n"),
        (read_lines("crlf", 2, 3), "b\n\n"),
        (read_lines("crlf", 3, 0), "\nlast"),
        (read_lines("crlf", 4, -1), "last"),
        (read_lines("crlf", 5, 9), ""),
        (read_lines("crlf", 3, 2), ""),
    ] {
        assert_eq!(sandbox.file_ok(op.clone()).await, want, "{op:?}");
    }
    let absolute = sandbox.work("crlf").display().to_string();
    assert_eq!(sandbox.file_ok(read(&absolute)).await, "a\r\nb\n\nlast");
}

#[tokio::test]
async fn read_refuses_with_the_reason() {
    let Some(sandbox) = sandbox("read_refuses_with_the_reason").await else { return };
    sandbox.put("big", "x".repeat(262_145));
    sandbox.put("lines", "0123456789\n".repeat(40_000));
    sandbox.put("binary", b"\xff\xfe\x00");
    let secret = sandbox.put("secret", "s");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    fs::create_dir(sandbox.work("dir")).unwrap();
    for (op, want) in [
        (read("nope"), "read: nope: no such file or directory"),
        (read("nope/deeper"), "read: nope/deeper: no such file or directory"),
        (read("lines/below"), "read: lines/below: not a directory"),
        (read("dir"), "read: dir: not a regular file"),
        (read("."), "read: .: not a regular file"),
        (read("secret"), "read: secret: permission denied"),
        (
            read("binary"),
            "read: binary: not valid UTF-8 text (binary files are only supported for image/PDF extensions)",
        ),
        (
            read("big"),
            "read: big is 262145 bytes, exceeds 262144-byte limit. Use the view_range parameter to read specific line ranges, e.g. view_range: [1, 500].",
        ),
        (read_lines("big", 1, 1), "read: line 1 of big alone exceeds 262144 bytes"),
        (
            read_lines("lines", 2, 39_000),
            "read: view_range [2, 39000] of lines exceeds 262144 bytes. Narrow the view_range; it was reached at line 23833.",
        ),
    ] {
        assert_eq!(sandbox.file_refused(op.clone()).await, want, "{op:?}");
    }
    assert_eq!(
        sandbox.file_ok(read_lines("lines", 39_999, 40_000)).await,
        "0123456789\n".repeat(2)
    );
}

#[tokio::test]
async fn images_and_documents_come_whole() {
    let Some(sandbox) = sandbox("images_and_documents_come_whole").await else { return };
    let image: Vec<u8> = (0..3_932_160u32).map(|n| (n % 251) as u8).collect();
    sandbox.put("a.PNG", &image);
    sandbox.put("b.pdf", b"%PDF");
    sandbox.put("over.jpg", [&image[..], b"x"].concat());
    let root = Root { path: sandbox.path("work").display().to_string(), writable: true };
    let work = Work::File(FileSpec { in_workdir: false, roots: vec![root], op: read("a.PNG") });
    let id = CallId::generate();
    let limits = OutputLimits::default();
    let spec = CallSpec { timeout: Duration::from_secs(20), limits, work };
    sandbox.client.start(&id, &spec).await.unwrap();
    let outcome = sandbox.client.wait(&id).await.unwrap();
    assert_eq!(outcome.block, Block::Image { media_type: "image/png".into() });
    assert_eq!(outcome.output_path, None);
    assert!(sandbox.client.read_all(&id, usize::MAX).await.unwrap() == image);
    sandbox.client.ack(&id).await.unwrap();
    assert!(!sandbox.path("out").join(format!("{id}.out")).exists());

    let document = sandbox.file(read("b.pdf")).await;
    assert_eq!(document.block, Block::Document { media_type: "application/pdf".into() });
    assert_eq!(document.head, b"%PDF");
    assert_eq!(
        sandbox.file_refused(read("over.jpg")).await,
        "read: over.jpg is 3932161 bytes, exceeds 3932160-byte limit for image/PDF files."
    );
    assert_eq!(
        sandbox.file_refused(read_lines("b.pdf", 1, 2)).await,
        "read: view_range is not supported for image/PDF files"
    );
}

#[tokio::test]
async fn write_makes_parents_keeps_modes_and_leaves_nothing_half() {
    let test = "write_makes_parents_keeps_modes_and_leaves_nothing_half";
    let Some(sandbox) = sandbox(test).await else { return };
    assert_eq!(
        sandbox.file_ok(write("a/b/c.txt", "h\u{e9}\r\n")).await,
        "wrote 5 bytes to a/b/c.txt"
    );
    assert_eq!(fs::read(sandbox.work("a/b/c.txt")).unwrap(), "h\u{e9}\r\n".as_bytes());
    let stats = sandbox.bash("stat -c '%u %a' a a/b a/b/c.txt").await;
    assert_ok(&stats, "1000 755\n1000 755\n1000 644\n");
    let script = sandbox.put("run.sh", "old");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o750)).unwrap();
    sandbox.file_ok(write("run.sh", "new")).await;
    assert_eq!(fs::metadata(&script).unwrap().permissions().mode() & 0o7777, 0o750);
    assert_eq!(fs::read(&script).unwrap(), b"new");
    let big = "z".repeat(5 << 20);
    sandbox.file_ok(write("big", &big)).await;
    assert_eq!(fs::metadata(sandbox.work("big")).unwrap().len(), 5 << 20);
    let names: Vec<String> = fs::read_dir(sandbox.path("work"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().all(|name| !name.starts_with(".sinew")), "{names:?}");

    let read_only = sandbox.put("read-only", "");
    fs::set_permissions(read_only, fs::Permissions::from_mode(0o444)).unwrap();
    fs::create_dir(sandbox.work("dir")).unwrap();
    symlink("dir", sandbox.work("to-dir")).unwrap();
    let out = sandbox.path("out").display().to_string();
    for (op, want) in [
        (write("dir", ""), "write: dir: is a directory".to_owned()),
        (write("to-dir", ""), "write: to-dir: is a directory".to_owned()),
        (write(".", ""), "write: .: is a directory".to_owned()),
        (write("new/", ""), "write: new/: is a directory".to_owned()),
        (write("read-only", ""), "write: read-only: permission denied".to_owned()),
        (write("run.sh/x", ""), "write: run.sh/x: not a directory".to_owned()),
        (write("dir/owned-by-root", ""), "write: dir/owned-by-root: permission denied".to_owned()),
        (
            write(&format!("{out}/x"), ""),
            format!("write: {out}/x is inside read-only directory {out}"),
        ),
    ] {
        assert_eq!(sandbox.file_refused(op.clone()).await, want, "{op:?}");
    }
    // A file that is ours in a directory that is not is written in place.
    fs::write(sandbox.work("dir/mine"), "1").unwrap();
    std::os::unix::fs::chown(sandbox.work("dir/mine"), Some(1000), Some(1000)).unwrap();
    sandbox.file_ok(write("dir/mine", "2")).await;
    assert_eq!(fs::read(sandbox.work("dir/mine")).unwrap(), b"2");
}

#[tokio::test]
async fn edit_is_exact() {
    let Some(sandbox) = sandbox("edit_is_exact").await else { return };
    let file = sandbox.put("f", "cost: $1 \\1 (.*) cost\n");
    assert_eq!(
        sandbox.file_ok(edit("f", "$1 \\1 (.*)", "$0 & $& \\0", false)).await,
        "edited f (1 replacement)"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), "cost: $0 & $& \\0 cost\n");
    assert_eq!(
        sandbox.file_refused(edit("f", "cost", "x", false)).await,
        "edit: old_string appears 2 times in f (must be unique)"
    );
    assert_eq!(sandbox.file_ok(edit("f", "cost", "x", true)).await, "edited f (2 replacements)");
    assert_eq!(fs::read_to_string(&file).unwrap(), "x: $0 & $& \\0 x\n");
    assert_eq!(
        sandbox.file_refused(edit("f", "gone", "x", false)).await,
        "edit: old_string not found in f"
    );
    assert_eq!(
        sandbox.file_refused(edit("nope", "a", "b", false)).await,
        "edit: nope: no such file or directory"
    );
    sandbox.put("abc", "abc");
    assert_eq!(
        sandbox.file_refused(edit("abc", "", "-", false)).await,
        "edit: old_string appears 4 times in abc (must be unique)"
    );
    sandbox.file_ok(edit("abc", "", "-", true)).await;
    assert_eq!(fs::read_to_string(sandbox.work("abc")).unwrap(), "-a-b-c-");
    sandbox.put("huge", "a".repeat(200_000));
    assert_eq!(
        sandbox.file_refused(edit("huge", "a", &"b".repeat(1000), true)).await,
        "edit: huge: the result would be too long"
    );
}

#[tokio::test]
async fn links_lead_where_they_may_and_nowhere_else() {
    let Some(sandbox) = sandbox("links_lead_where_they_may_and_nowhere_else").await else { return };
    let work = sandbox.path("work").display().to_string();
    sandbox.put("real/file", "inside");
    fs::write(sandbox.path("out").join("kept"), "kept").unwrap();
    fs::write(sandbox.path("outside"), "outside").unwrap();
    let link = |target: &str, name: &str| symlink(target, sandbox.work(name)).unwrap();
    link("real", "dir");
    link(&format!("{work}/dir/file"), "absolute");
    link("../work/./real/../dir/file", "around");
    link(&sandbox.path("out").display().to_string(), "outputs");
    for (path, want) in [
        ("dir/file", "inside"),
        ("absolute", "inside"),
        ("around", "inside"),
        ("outputs/kept", "kept"),
        ("../out/kept", "kept"),
    ] {
        assert_eq!(sandbox.file_ok(read(path)).await, want, "{path}");
    }
    link("../outside", "up");
    link("/etc/passwd", "passwd");
    link("/", "root");
    link("/proc/self/root", "proc");
    link("loop-b", "loop-a");
    link("loop-a", "loop-b");
    for path in ["../outside", "/etc/passwd", "up", "passwd", "root/etc/passwd", "proc", "..", "/"]
    {
        for op in
            [read(path), write(path, "x"), edit(path, "a", "b", false), grep("root", Some(path))]
        {
            let refused = sandbox.file_refused(op.clone()).await;
            assert!(refused.ends_with(&format!(": path '{path}' is outside the session's working directory and its other permitted directories")), "{op:?}: {refused}");
        }
    }
    assert_eq!(
        sandbox.file_refused(read("loop-a")).await,
        "read: path 'loop-a': too many levels of symbolic links"
    );
    assert_eq!(fs::read(sandbox.path("outside")).unwrap(), b"outside");
    // Forty links are followed, as the kernel does; one more is not.
    link("real/file", "hop0");
    for hop in 1..=40 {
        link(&format!("hop{}", hop - 1), &format!("hop{hop}"));
    }
    assert_eq!(sandbox.file_ok(read("hop39")).await, "inside");
    assert!(sandbox.file_refused(read("hop40")).await.contains("too many levels"));
    // A link to nothing is written through; one to nothing outside is not.
    link("fresh/made", "dangling");
    sandbox.file_ok(write("dangling", "through")).await;
    assert_eq!(fs::read(sandbox.work("fresh/made")).unwrap(), b"through");
    link("../escaped", "dangling-out");
    assert!(sandbox.file_refused(write("dangling-out", "x")).await.contains("outside"));
    assert!(!sandbox.path("escaped").exists());
    link("missing/../../escaped", "dangling-up");
    sandbox.file_refused(write("dangling-up", "x")).await;
    assert!(!sandbox.path("escaped").exists());
}

#[tokio::test]
async fn what_is_no_file_is_refused_and_never_waited_for() {
    let test = "what_is_no_file_is_refused_and_never_waited_for";
    let Some(sandbox) = sandbox(test).await else { return };
    assert_ok(&sandbox.bash("mkfifo fifo; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")' 2>/dev/null; echo needle > file").await, "");
    for path in ["fifo", "sock"] {
        if !sandbox.work(path).exists() {
            continue;
        }
        for op in [read(path), write(path, "x"), edit(path, "a", "b", false), grep("x", Some(path))]
        {
            let refused = sandbox.file_refused(op.clone()).await;
            assert!(refused.ends_with(": not a regular file"), "{op:?}: {refused}");
        }
    }
    assert_eq!(
        sandbox.file_ok(grep("needle", None)).await,
        format!("{}:1:needle", sandbox.work("file").display())
    );
}

#[tokio::test]
async fn a_directory_swapped_for_a_link_is_never_followed_out() {
    let test = "a_directory_swapped_for_a_link_is_never_followed_out";
    let Some(sandbox) = sandbox(test).await else { return };
    fs::create_dir(sandbox.path("elsewhere")).unwrap();
    fs::set_permissions(sandbox.path("elsewhere"), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(sandbox.path("elsewhere/file"), "outside").unwrap();
    fs::set_permissions(sandbox.path("elsewhere/file"), fs::Permissions::from_mode(0o666)).unwrap();
    sandbox.put("dir/file", "inside");
    symlink("../elsewhere", sandbox.work("link")).unwrap();
    let (dir, link, done) =
        (sandbox.work("dir"), sandbox.work("link"), Arc::new(AtomicBool::new(false)));
    let stop = done.clone();
    let swapper = std::thread::spawn(move || {
        let mut swaps = 0u64;
        while !stop.load(Ordering::Relaxed) {
            // Exchanged in one step: at each moment `dir` is one or the other.
            rustix::fs::renameat_with(
                rustix::fs::CWD,
                &dir,
                rustix::fs::CWD,
                &link,
                rustix::fs::RenameFlags::EXCHANGE,
            )
            .unwrap();
            swaps += 1;
        }
        swaps
    });
    let mut inside = 0;
    for round in 0..150 {
        let outcome = sandbox.file(read("dir/file")).await;
        inside += u32::from(outcome.exit == Exit::Code(0));
        assert!(
            !text(&outcome).contains("outside\n") && text(&outcome) != "outside",
            "{outcome:?}"
        );
        sandbox.file(write("dir/file", "inside")).await;
        sandbox.file(write(&format!("dir/new{round}"), "inside")).await;
        let found = sandbox.file(grep("outside", None)).await;
        assert_eq!(text(&found), "no matches");
    }
    done.store(true, Ordering::Relaxed);
    assert!(swapper.join().unwrap() > 1000);
    assert!(inside > 0, "the race was never on the good side");
    assert_eq!(fs::read_to_string(sandbox.path("elsewhere/file")).unwrap(), "outside");
    assert_eq!(fs::read_dir(sandbox.path("elsewhere")).unwrap().count(), 1);
}

#[tokio::test]
async fn glob_finds_names_newest_first() {
    let Some(sandbox) = sandbox("glob_finds_names_newest_first").await else { return };
    let names =
        ["a.rs", "b.rs", "src/c.rs", "src/deep/d.rs", "src/e.py", ".hidden/f.rs", "src/.g.rs"];
    for (age, name) in names.iter().enumerate() {
        let file = fs::File::open(sandbox.put(name, "")).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(1000 * age as u64)).unwrap();
    }
    let base = sandbox.path("work").display().to_string();
    let list = |names: &[&str]| {
        names.iter().map(|name| format!("{base}/{name}")).collect::<Vec<_>>().join("\n")
    };
    for (pattern, path, want) in [
        ("*.rs", None, list(&["a.rs", "b.rs"])),
        (
            "**/*.rs",
            None,
            list(&["a.rs", "b.rs", "src/c.rs", "src/deep/d.rs", ".hidden/f.rs", "src/.g.rs"]),
        ),
        ("src/*.{rs,py}", None, list(&["src/c.rs", "src/e.py", "src/.g.rs"])),
        ("{a,src/c}.rs", None, list(&["a.rs", "src/c.rs"])),
        ("./[ab].rs", None, list(&["a.rs", "b.rs"])),
        ("**/*.rs", Some("src"), list(&["src/c.rs", "src/deep/d.rs", "src/.g.rs"])),
        ("deep/**", Some("src"), list(&["src/deep/d.rs"])),
        ("*.go", None, "no matches".to_owned()),
    ] {
        assert_eq!(sandbox.file_ok(glob(pattern, path)).await, want, "{pattern}");
    }
    for (pattern, path, want) in [
        (
            "/etc/*",
            None,
            "glob: absolute pattern not permitted; pass a relative pattern (and optionally path)",
        ),
        ("a/../*", None, "glob: '..' is not permitted in the pattern"),
        ("[", None, "glob: invalid pattern: unclosed character class; missing ']'"),
        ("*", Some("nope"), "glob: nope: no such file or directory"),
        ("*", Some("a.rs"), "glob: a.rs: not a directory"),
    ] {
        assert_eq!(sandbox.file_refused(glob(pattern, path)).await, want, "{pattern}");
    }
    assert_ok(
        &sandbox.bash("mkdir many && cd many && seq -f 'f%g' 1 250 | xargs touch && cd ..").await,
        "",
    );
    let many = sandbox.file_ok(glob("many/*", None)).await;
    assert_eq!(many.lines().count(), 201);
    assert!(many.ends_with("\n[50 more paths not shown]"));
}

#[tokio::test]
async fn grep_finds_lines_and_shows_its_errors() {
    let Some(sandbox) = sandbox("grep_finds_lines_and_shows_its_errors").await else { return };
    sandbox.put("b.txt", "one\ntwo foo\nthree\n");
    sandbox.put("a/deep.txt", "foo");
    sandbox.put(".hidden", "foo hidden\n");
    sandbox.put(".git/config", "foo\n");
    sandbox.put("node_modules/x.js", "foo\n");
    sandbox.put("binary", b"foo\0foo\n");
    let base = sandbox.path("work").display().to_string();
    let want =
        format!("{base}/.hidden:1:foo hidden\n{base}/a/deep.txt:1:foo\n{base}/b.txt:2:two foo");
    assert_eq!(sandbox.file_ok(grep("foo", None)).await, want);
    assert_eq!(
        sandbox.file_ok(grep("^t\\w+\\s", Some("b.txt"))).await,
        format!("{base}/b.txt:2:two foo")
    );
    assert_eq!(sandbox.file_ok(grep("foo", Some("a"))).await, format!("{base}/a/deep.txt:1:foo"));
    assert_eq!(sandbox.file_ok(grep("absent", None)).await, "no matches");
    let invalid = sandbox.file_refused(grep("(", None)).await;
    assert!(invalid.starts_with("grep: invalid regex: "), "{invalid}");
    assert_eq!(
        sandbox.file_refused(grep("x", Some("nope"))).await,
        "grep: nope: no such file or directory"
    );
    let secret = sandbox.put("secret", "foo");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    let shown = sandbox.file_ok(grep("foo", None)).await;
    assert!(shown.ends_with(&format!("\ngrep: {base}/secret: permission denied")), "{shown}");
    sandbox.put("long/line", format!("foo{}\n", "x".repeat(5000)));
    let long = sandbox.file_ok(grep("foo", Some("long"))).await;
    assert!(long.ends_with(" [line of 5003 bytes cut]") && long.len() < 2200, "{}", long.len());
    sandbox.put("much/lines", "foo and more\n".repeat(20_000));
    let much = sandbox.file_ok(grep("foo", Some("much"))).await;
    assert!(much.ends_with("\n[output truncated at 102400 bytes]"));
    assert!(much.len() <= 102_400 + 60 && much.len() > 102_000, "{}", much.len());
}
