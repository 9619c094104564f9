#!/usr/bin/python3
"""Who may speak: certificates of another cluster, expired ones, none at all, and
roles that do not suffice."""
import os
import shutil
import subprocess

from bench import DONE, NO_COORDINATOR, NOT_ALLOWED, Case, main
import bench as bench_module


class Certificates(Case):
    nodes = 1

    def pki(self, *args):
        subprocess.run([f"{bench_module.BUILD}/bin/baton", "pki", *args], check=True, stdin=subprocess.DEVNULL, capture_output=True)

    def with_folder(self, folder, *args):
        return self.bench.call(*args, env={"BATON_TLS_DIR": folder}, timeout=60)

    def test_viewer_may_look_but_not_change(self):
        viewer = self.bench.dir + "/pki/viewer"
        self.assertEqual(self.with_folder(viewer, "node", "ls").returncode, DONE)
        done = self.with_folder(viewer, "run", "x", "--", "/bin/sleep", "60")
        self.assertEqual(done.returncode, NOT_ALLOWED, done.stderr)
        self.assertIn("operator", done.stderr)

    def test_node_is_no_operator(self):
        folder = self.bench.shared + "/as-node"
        shutil.copytree(self.bench.dir + "/pki/ecu1", folder)
        self.assertEqual(self.with_folder(folder, "run", "x", "--", "/bin/sleep", "60").returncode, NOT_ALLOWED)

    def test_operator_of_another_cluster_is_refused(self):
        other = self.bench.shared + "/other"
        self.pki("init", "--dir", other + "/ca", "--cluster", "elsewhere")
        self.pki("issue", "--dir", other + "/ca", "--role", "operator", "--name", "operator", "--out", other + "/operator")
        done = self.with_folder(other + "/operator", "node", "ls")
        self.assertIn(done.returncode, (NO_COORDINATOR, NOT_ALLOWED))
        self.assertTrue(done.stderr.strip())
        # The coordinator's authority in hand, but still the other's certificate.
        ca = next(f for f in os.listdir(self.bench.dir + "/pki/operator") if f.startswith("ca."))
        shutil.copy(f"{self.bench.dir}/pki/operator/{ca}", f"{other}/operator/{ca}")
        self.assertIn(self.with_folder(other + "/operator", "node", "ls").returncode, (1, NO_COORDINATOR, NOT_ALLOWED))

    def test_no_certificate_and_no_tls(self):
        done = self.with_folder(self.bench.shared + "/nothing-here", "node", "ls")
        self.assertNotEqual(done.returncode, DONE)
        self.assertIn("nothing-here", done.stderr)
        script = ("import socket\ns=socket.create_connection(('10.77.0.1',7400),timeout=5); s.sendall(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n'+bytes(4096)); s.settimeout(10)\n"
                  "data=b''\ntry:\n  while (piece:=s.recv(999)): data+=piece\nexcept OSError: pass\nprint(len(data))")
        self.bench.exec("operator", "/usr/bin/python3", "-c", script)
        self.assertEqual(self.bench.call("node", "ls").returncode, DONE, "the coordinator does not survive a client without TLS")

    def test_expired_certificate_is_refused(self):
        source = self.bench.dir + "/pki"
        folder = self.bench.shared + "/expired"
        os.makedirs(folder)
        names = {f.split(".")[0] + "." + f.split(".")[1]: f for f in os.listdir(source + "/operator")}
        authority = next(f for f in os.listdir(source + "/ca") if f.startswith("ca") and "key" not in f)
        authority_key = next(f for f in os.listdir(source + "/ca") if "key" in f)
        key = next(f for f in names.values() if "key" in f)
        cert = next(f for f in names.values() if not f.startswith("ca") and "key" not in f)
        ca_here = next(f for f in names.values() if f.startswith("ca"))
        shutil.copy(f"{source}/operator/{key}", folder)
        shutil.copy(f"{source}/operator/{ca_here}", folder)
        san = subprocess.run(["openssl", "x509", "-in", f"{source}/operator/{cert}", "-noout", "-ext", "subjectAltName"], capture_output=True, text=True, check=True).stdout
        uri = san.split("URI:")[1].split(",")[0].strip()
        with open(folder + "/ext", "w", encoding="ascii") as f:
            f.write(f"subjectAltName=URI:{uri}\nextendedKeyUsage=clientAuth,serverAuth\nkeyUsage=digitalSignature\n")
        subprocess.run(["openssl", "req", "-new", "-key", f"{folder}/{key}", "-subj", "/CN=operator", "-out", folder + "/req"], check=True, capture_output=True)
        # -days of a negative number: valid until yesterday.
        made = subprocess.run(["openssl", "x509", "-req", "-in", folder + "/req", "-CA", f"{source}/ca/{authority}", "-CAkey", f"{source}/ca/{authority_key}", "-days", "-1",
                               "-set_serial", "77", "-extfile", folder + "/ext", "-out", f"{folder}/{cert}"], capture_output=True, text=True, check=False)
        self.assertEqual(made.returncode, 0, made.stderr)
        done = self.with_folder(folder, "node", "ls")
        self.assertNotEqual(done.returncode, DONE)
        self.assertIn("expired", done.stderr)


if __name__ == "__main__":
    main()
