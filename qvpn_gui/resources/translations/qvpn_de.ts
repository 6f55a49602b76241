<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE TS>
<TS version="2.1" language="de" sourcelanguage="en">
<context>
    <name>App</name>
    <message>
        <source>Connection lost</source>
        <extracomment>Parts of the core that are imported once the app is there, beside the event loop. What the desktop gets to say how it looks before the window appears.</extracomment>
        <translation>Verbindung verloren</translation>
    </message>
    <message>
        <source>Reconnecting to {gateway}.</source>
        <translation>Verbindung zu {gateway} wird wiederhergestellt.</translation>
    </message>
    <message>
        <source>Connected again</source>
        <translation>Wieder verbunden</translation>
    </message>
</context>
<context>
    <name>ChecksPage</name>
    <message>
        <source>Check a&amp;gain</source>
        <translation>&amp;Erneut prüfen</translation>
    </message>
    <message>
        <source>Results</source>
        <translation>Ergebnisse</translation>
    </message>
    <message>
        <source>Checking…</source>
        <translation>Wird geprüft …</translation>
    </message>
</context>
<context>
    <name>ClearableLine</name>
    <message>
        <source>Clear</source>
        <translation>Leeren</translation>
    </message>
</context>
<context>
    <name>DefectDialog</name>
    <message>
        <source>qvpn has a defect</source>
        <translation>qvpn hat einen Fehler</translation>
    </message>
    <message>
        <source>Something went wrong in qvpn</source>
        <translation>In qvpn ist etwas schiefgegangen</translation>
    </message>
    <message>
        <source>This is a defect of the app. Your session goes on if it was up. If something no longer works, quit qvpn: your network is put back as it was.</source>
        <translation>Das ist ein Fehler der App. Ihre Sitzung läuft weiter, falls sie bestand. Wenn etwas nicht mehr geht, beenden Sie qvpn: Ihr Netzwerk wird wiederhergestellt.</translation>
    </message>
    <message>
        <source>Report</source>
        <translation>Bericht</translation>
    </message>
    <message>
        <source>&amp;Copy report</source>
        <translation>Bericht &amp;kopieren</translation>
    </message>
    <message>
        <source>&amp;Quit qvpn</source>
        <translation>qvpn &amp;beenden</translation>
    </message>
    <message>
        <source>C&amp;ontinue</source>
        <translation>&amp;Weiter</translation>
    </message>
</context>
<context>
    <name>DetailsCard</name>
    <message>
        <source>{name}: {value}</source>
        <translation>{name}: {value}</translation>
    </message>
    <message>
        <source>Name servers</source>
        <translation>Nameserver</translation>
    </message>
    <message>
        <source>Your addresses</source>
        <translation>Ihre Adressen</translation>
    </message>
    <message>
        <source>Round trip</source>
        <translation>Umlaufzeit</translation>
    </message>
    <message>
        <source>Lost packets</source>
        <translation>Verlorene Pakete</translation>
    </message>
    <message>
        <source>Largest packet</source>
        <translation>Größtes Paket</translation>
    </message>
    <message>
        <source>{number} bytes</source>
        <translation>{number} Byte</translation>
    </message>
    <message>
        <source>Transport</source>
        <translation>Transport</translation>
    </message>
    <message>
        <source>Good to know</source>
        <translation>Gut zu wissen</translation>
    </message>
    <message>
        <source>QUIC over UDP</source>
        <translation>QUIC über UDP</translation>
    </message>
    <message>
        <source>TLS over TCP</source>
        <translation>TLS über TCP</translation>
    </message>
</context>
<context>
    <name>DiagnosticsDialog</name>
    <message>
        <source>Diagnostics</source>
        <extracomment>Bytes of a log that are shown, from its end.</extracomment>
        <translation>Diagnose</translation>
    </message>
    <message>
        <source>&amp;Checks</source>
        <translation>&amp;Prüfungen</translation>
    </message>
    <message>
        <source>&amp;Log</source>
        <translation>Pro&amp;tokoll</translation>
    </message>
    <message>
        <source>&amp;Report</source>
        <translation>&amp;Bericht</translation>
    </message>
    <message>
        <source>Cl&amp;ose</source>
        <translation>S&amp;chließen</translation>
    </message>
    <message>
        <source>Save the report</source>
        <translation>Bericht speichern</translation>
    </message>
    <message>
        <source>Saved as {file}.</source>
        <translation>Gespeichert als {file}.</translation>
    </message>
</context>
<context>
    <name>DiagnosticsWords</name>
    <message>
        <source>The helper that changes the network</source>
        <translation>Der Helfer, der das Netzwerk ändert</translation>
    </message>
    <message>
        <source>Asking for permission</source>
        <translation>Erlaubnis einholen</translation>
    </message>
    <message>
        <source>Tunnel device</source>
        <translation>Tunnelgerät</translation>
    </message>
    <message>
        <source>Clock</source>
        <translation>Uhr</translation>
    </message>
    <message>
        <source>Leftovers of earlier sessions</source>
        <translation>Reste früherer Sitzungen</translation>
    </message>
    <message>
        <source>Kill switch</source>
        <translation>Notausschalter</translation>
    </message>
    <message>
        <source>Names (DNS)</source>
        <translation>Namen (DNS)</translation>
    </message>
    <message>
        <source>Reaching the gateway over UDP</source>
        <translation>Gateway über UDP erreichen</translation>
    </message>
    <message>
        <source>Packet size</source>
        <translation>Paketgröße</translation>
    </message>
    <message>
        <source>Traffic outside the tunnel</source>
        <translation>Verkehr am Tunnel vorbei</translation>
    </message>
    <message>
        <source>Icon in the panel</source>
        <translation>Symbol in der Leiste</translation>
    </message>
    <message>
        <source>Good</source>
        <translation>Gut</translation>
    </message>
    <message>
        <source>Not known</source>
        <translation>Nicht bekannt</translation>
    </message>
    <message>
        <source>Needs attention</source>
        <translation>Bitte prüfen</translation>
    </message>
    <message>
        <source>Problem</source>
        <translation>Problem</translation>
    </message>
    <message numerus="yes">
        <source>%n problem(s) found.</source>
        <translation>
            <numerusform>%n Problem gefunden.</numerusform>
            <numerusform>%n Probleme gefunden.</numerusform>
        </translation>
    </message>
    <message numerus="yes">
        <source>No problem found, %n thing(s) to look at.</source>
        <translation>
            <numerusform>Kein Problem gefunden, %n Hinweis.</numerusform>
            <numerusform>Kein Problem gefunden, %n Hinweise.</numerusform>
        </translation>
    </message>
    <message>
        <source>No problem found.</source>
        <translation>Kein Problem gefunden.</translation>
    </message>
</context>
<context>
    <name>FirstRunPage</name>
    <message>
        <source>Welcome</source>
        <translation>Willkommen</translation>
    </message>
    <message>
        <source>Paste the invite you received from whoever runs your gateway. This device then makes a key of its own, which never leaves it.</source>
        <translation>Fügen Sie die Einladung ein, die Sie vom Betreiber Ihres Gateways bekommen haben. Dieses Gerät erzeugt damit einen eigenen Schlüssel, der es nie verlässt.</translation>
    </message>
</context>
<context>
    <name>InviteForm</name>
    <message>
        <source>&amp;Open a file…</source>
        <translation>Datei ö&amp;ffnen …</translation>
    </message>
    <message>
        <source>qvpn://…</source>
        <translation>qvpn://…</translation>
    </message>
    <message>
        <source>Invite</source>
        <translation>Einladung</translation>
    </message>
    <message>
        <source>&amp;Name on this computer</source>
        <translation>&amp;Name auf diesem Rechner</translation>
    </message>
    <message>
        <source>You can also drop a file here.</source>
        <translation>Sie können auch eine Datei hierher ziehen.</translation>
    </message>
    <message>
        <source>{file} cannot be read: {why}</source>
        <translation>{file} kann nicht gelesen werden: {why}</translation>
    </message>
    <message>
        <source>Open an invite</source>
        <translation>Einladung öffnen</translation>
    </message>
    <message>
        <source>Registering this device with the gateway…</source>
        <translation>Dieses Gerät wird beim Gateway angemeldet …</translation>
    </message>
    <message>
        <source>Adding…</source>
        <translation>Wird hinzugefügt …</translation>
    </message>
    <message>
        <source>&amp;Add this gateway</source>
        <translation>Dieses Gateway &amp;hinzufügen</translation>
    </message>
    <message>
        <source>Invite to {gateway}.</source>
        <translation>Einladung zu {gateway}.</translation>
    </message>
    <message>
        <source>Invite to {gateway}, good until {when}.</source>
        <translation>Einladung zu {gateway}, gültig bis {when}.</translation>
    </message>
</context>
<context>
    <name>KillSwitchMenu</name>
    <message>
        <source>&amp;Kill switch</source>
        <translation>&amp;Notausschalter</translation>
    </message>
    <message>
        <source>Off</source>
        <translation>Aus</translation>
    </message>
    <message>
        <source>While connected</source>
        <translation>Solange verbunden</translation>
    </message>
    <message>
        <source>Always</source>
        <translation>Immer</translation>
    </message>
</context>
<context>
    <name>LinesTable</name>
    <message>
        <source>Destination</source>
        <translation>Ziel</translation>
    </message>
    <message>
        <source>Exception</source>
        <translation>Ausnahme</translation>
    </message>
    <message>
        <source>Comment</source>
        <translation>Kommentar</translation>
    </message>
    <message>
        <source>a comment</source>
        <translation>ein Kommentar</translation>
    </message>
    <message>
        <source>an exception</source>
        <translation>eine Ausnahme</translation>
    </message>
    <message>
        <source>no exception</source>
        <translation>keine Ausnahme</translation>
    </message>
    <message>
        <source>no comment</source>
        <translation>kein Kommentar</translation>
    </message>
</context>
<context>
    <name>LogPage</name>
    <message>
        <source>This app</source>
        <translation>Diese App</translation>
    </message>
    <message>
        <source>qvpn up</source>
        <translation>qvpn up</translation>
    </message>
    <message>
        <source>All</source>
        <translation>Alles</translation>
    </message>
    <message>
        <source>Normal</source>
        <translation>Normal</translation>
    </message>
    <message>
        <source>Warnings</source>
        <translation>Warnungen</translation>
    </message>
    <message>
        <source>Errors</source>
        <translation>Fehler</translation>
    </message>
    <message>
        <source>Filter</source>
        <translation>Filter</translation>
    </message>
    <message>
        <source>Log</source>
        <translation>Protokoll</translation>
    </message>
    <message>
        <source>So&amp;urce</source>
        <translation>&amp;Quelle</translation>
    </message>
    <message>
        <source>Le&amp;vel</source>
        <translation>&amp;Stufe</translation>
    </message>
    <message>
        <source>No entries.</source>
        <translation>Keine Einträge.</translation>
    </message>
</context>
<context>
    <name>MainWindow</name>
    <message>
        <source>Menu</source>
        <extracomment>Of a window that shows all of a session, in device-independent pixels. The user wants to see all profiles.</extracomment>
        <translation>Menü</translation>
    </message>
    <message>
        <source>&amp;Profiles…</source>
        <translation>&amp;Profile …</translation>
    </message>
    <message>
        <source>&amp;Quit</source>
        <translation>&amp;Beenden</translation>
    </message>
    <message>
        <source>Profile {name}</source>
        <extracomment>Before this one, dialogs add their own.</extracomment>
        <translation>Profil {name}</translation>
    </message>
    <message>
        <source>&amp;Add or change…</source>
        <translation>&amp;Hinzufügen oder ändern …</translation>
    </message>
</context>
<context>
    <name>Opener</name>
    <message>
        <source>What uses the &amp;tunnel…</source>
        <translation>Was den &amp;Tunnel nutzt …</translation>
    </message>
    <message>
        <source>&amp;Connect as…</source>
        <translation>&amp;Verbinden als …</translation>
    </message>
    <message>
        <source>&amp;Settings…</source>
        <translation>&amp;Einstellungen …</translation>
    </message>
    <message>
        <source>&amp;Diagnostics…</source>
        <translation>&amp;Diagnose …</translation>
    </message>
</context>
<context>
    <name>ProblemCard</name>
    <message>
        <source>Try &amp;now</source>
        <extracomment>The user wants the block of the kill switch to end. The user does not want to wait for the next attempt. The user wants to see the network&apos;s sign-in page. The user wants a proxy instead of a tunnel. The user wants to paste a new invite.</extracomment>
        <translation>&amp;Jetzt versuchen</translation>
    </message>
    <message>
        <source>&amp;Network settings…</source>
        <translation>&amp;Netzwerkeinstellungen …</translation>
    </message>
    <message>
        <source>Open the &amp;sign-in page</source>
        <translation>An&amp;meldeseite öffnen</translation>
    </message>
    <message>
        <source>&amp;Release the block</source>
        <translation>Sperre auf&amp;heben</translation>
    </message>
    <message>
        <source>Use a new &amp;invite…</source>
        <translation>Neue &amp;Einladung verwenden …</translation>
    </message>
    <message>
        <source>Use a &amp;proxy instead…</source>
        <translation>Stattdessen einen &amp;Proxy verwenden …</translation>
    </message>
    <message>
        <source>Copy &amp;details</source>
        <translation>&amp;Details kopieren</translation>
    </message>
    <message>
        <source>Copied</source>
        <translation>Kopiert</translation>
    </message>
</context>
<context>
    <name>ProfilesDialog</name>
    <message>
        <source>&amp;Add…</source>
        <extracomment>A profile was added by an invite: its name.</extracomment>
        <translation>&amp;Hinzufügen …</translation>
    </message>
    <message>
        <source>&amp;Rename</source>
        <translation>&amp;Umbenennen</translation>
    </message>
    <message>
        <source>&amp;Export…</source>
        <translation>&amp;Exportieren …</translation>
    </message>
    <message>
        <source>&amp;Delete…</source>
        <translation>&amp;Löschen …</translation>
    </message>
    <message>
        <source>&amp;Connect this profile when qvpn starts</source>
        <translation>Dieses Profil beim Start von qvpn &amp;verbinden</translation>
    </message>
    <message>
        <source>&amp;Start qvpn when I log in</source>
        <translation>qvpn bei der Anmeldung &amp;starten</translation>
    </message>
    <message>
        <source>Profiles</source>
        <translation>Profile</translation>
    </message>
    <message>
        <source>Paste the invite for another gateway</source>
        <translation>Einladung für ein weiteres Gateway einfügen</translation>
    </message>
    <message>
        <source>&amp;Back</source>
        <translation>&amp;Zurück</translation>
    </message>
    <message>
        <source>Disconnect first</source>
        <translation>Zuerst trennen</translation>
    </message>
    <message>
        <source>Gateway: {gateway}</source>
        <translation>Gateway: {gateway}</translation>
    </message>
    <message>
        <source>This device is called {name} there</source>
        <translation>Dieses Gerät heißt dort {name}</translation>
    </message>
    <message>
        <source>Signs in with a token</source>
        <translation>Meldet sich mit einem Token an</translation>
    </message>
    <message>
        <source>The key is in a file that only you can read</source>
        <translation>Der Schlüssel liegt in einer Datei, die nur Sie lesen können</translation>
    </message>
    <message>
        <source>The key is in the desktop&apos;s password store</source>
        <translation>Der Schlüssel liegt im Passwortspeicher des Desktops</translation>
    </message>
    <message>
        <source>Question</source>
        <translation>Frage</translation>
    </message>
    <message>
        <source>Delete profile</source>
        <translation>Profil löschen</translation>
    </message>
    <message>
        <source>Delete {name} and its key?</source>
        <translation>{name} und den Schlüssel löschen?</translation>
    </message>
    <message>
        <source>To connect again you need a new invite from whoever runs the gateway.</source>
        <translation>Um wieder zu verbinden, brauchen Sie eine neue Einladung vom Betreiber des Gateways.</translation>
    </message>
    <message>
        <source>&amp;Delete</source>
        <translation>&amp;Löschen</translation>
    </message>
    <message>
        <source>Export without the key</source>
        <translation>Ohne Schlüssel exportieren</translation>
    </message>
</context>
<context>
    <name>ProgressCard</name>
    <message>
        <source>now</source>
        <translation>jetzt</translation>
    </message>
    <message>
        <source>done</source>
        <translation>erledigt</translation>
    </message>
    <message>
        <source>not yet</source>
        <translation>noch nicht</translation>
    </message>
</context>
<context>
    <name>ProxyCard</name>
    <message>
        <source>Enter these in the network settings of your programs.</source>
        <translation>Tragen Sie diese in den Netzwerkeinstellungen Ihrer Programme ein.</translation>
    </message>
    <message>
        <source>Copy</source>
        <translation>Kopieren</translation>
    </message>
    <message>
        <source>{name}: {value}</source>
        <translation>{name}: {value}</translation>
    </message>
    <message>
        <source>Copy {address}</source>
        <translation>{address} kopieren</translation>
    </message>
    <message>
        <source>Copied</source>
        <translation>Kopiert</translation>
    </message>
</context>
<context>
    <name>ProxyDialog</name>
    <message>
        <source>&amp;Tunnel</source>
        <translation>&amp;Tunnel</translation>
    </message>
    <message>
        <source>&amp;Proxy only (no administrator rights)</source>
        <translation>Nur &amp;Proxy (ohne Administratorrechte)</translation>
    </message>
    <message>
        <source>none; for example {address}</source>
        <translation>keiner; zum Beispiel {address}</translation>
    </message>
    <message>
        <source>&amp;SOCKS proxy at</source>
        <translation>&amp;SOCKS-Proxy auf</translation>
    </message>
    <message>
        <source>&amp;HTTP proxy at</source>
        <translation>&amp;HTTP-Proxy auf</translation>
    </message>
    <message>
        <source>&amp;Forwards</source>
        <translation>&amp;Weiterleitungen</translation>
    </message>
    <message>
        <source>One per line: a port of this computer, then the host and port behind the gateway that it leads to.</source>
        <translation>Je Zeile eine: ein Port dieses Rechners, dann Rechner und Port hinter dem Gateway, zu denen er führt.</translation>
    </message>
    <message>
        <source>For all programs, or for the destinations that you choose.</source>
        <translation>Für alle Programme oder für die Ziele, die Sie wählen.</translation>
    </message>
    <message>
        <source>Only for programs that you set up for it; everything else on this computer goes directly.</source>
        <translation>Nur für Programme, die Sie dafür einrichten; alles andere auf diesem Rechner geht direkt.</translation>
    </message>
    <message>
        <source>Connect as: {name}</source>
        <translation>Verbinden als: {name}</translation>
    </message>
</context>
<context>
    <name>ReportPage</name>
    <message>
        <source>Report</source>
        <translation>Bericht</translation>
    </message>
    <message>
        <source>&amp;Save…</source>
        <translation>&amp;Speichern …</translation>
    </message>
    <message>
        <source>This is the whole report. Placeholders stand for names, addresses and keys, the same one each time. It goes nowhere but where you save it.</source>
        <translation>Das ist der ganze Bericht. Für Namen, Adressen und Schlüssel stehen Platzhalter, jedes Mal dieselben. Er geht nur dorthin, wo Sie ihn speichern.</translation>
    </message>
</context>
<context>
    <name>RouteWords</name>
    <message>
        <source>Tunnel</source>
        <translation>Tunnel</translation>
    </message>
    <message>
        <source>Direct</source>
        <translation>Direkt</translation>
    </message>
    <message>
        <source>Blocked</source>
        <translation>Gesperrt</translation>
    </message>
    <message>
        <source>The gateway carries it</source>
        <translation>Das Gateway leitet es weiter</translation>
    </message>
    <message>
        <source>Your list keeps it out</source>
        <translation>Ihre Liste nimmt es aus</translation>
    </message>
    <message>
        <source>Your local network</source>
        <translation>Ihr lokales Netzwerk</translation>
    </message>
    <message>
        <source>Means this computer or its own link</source>
        <translation>Meint diesen Rechner oder sein eigenes Netzsegment</translation>
    </message>
    <message>
        <source>The tunnel lacks this IP version; directly it would leak</source>
        <translation>Dem Tunnel fehlt diese IP-Version; direkt wäre es ein Leck</translation>
    </message>
    <message>
        <source>The gateway does not carry it</source>
        <translation>Das Gateway leitet es nicht weiter</translation>
    </message>
    <message>
        <source>lan (your local network)</source>
        <translation>lan (Ihr lokales Netzwerk)</translation>
    </message>
    <message>
        <source>This destination is listed twice.</source>
        <translation>Dieses Ziel steht zweimal in der Liste.</translation>
    </message>
    <message>
        <source>{other} covers this already.</source>
        <translation>{other} umfasst dies schon.</translation>
    </message>
    <message>
        <source>The same destination is listed the other way too ({other}): remove one.</source>
        <translation>Dasselbe Ziel steht auch andersherum in der Liste ({other}): Entfernen Sie eines.</translation>
    </message>
    <message>
        <source>Nothing in the list covers this, so it is no exception.</source>
        <translation>Nichts in der Liste umfasst dies, es ist also keine Ausnahme.</translation>
    </message>
    <message>
        <source>This name has no address now, so it has no effect.</source>
        <translation>Dieser Name hat zurzeit keine Adresse und bewirkt nichts.</translation>
    </message>
    <message>
        <source>Your local network can be kept out of the tunnel, not sent into it.</source>
        <translation>Ihr lokales Netzwerk kann nur vom Tunnel ausgenommen werden.</translation>
    </message>
    <message>
        <source>The gateway does not carry this: what belongs there will be blocked.</source>
        <translation>Das Gateway leitet dies nicht weiter: Was dorthin gehört, wird gesperrt.</translation>
    </message>
    <message>
        <source>{address} uses the tunnel</source>
        <translation>{address} nutzt den Tunnel</translation>
    </message>
    <message>
        <source>{address} goes directly</source>
        <translation>{address} geht direkt</translation>
    </message>
    <message>
        <source>{address} is blocked</source>
        <translation>{address} ist gesperrt</translation>
    </message>
    <message>
        <source>Outside the tunnel, the kill switch blocks it.</source>
        <translation>Außerhalb des Tunnels sperrt es der Notausschalter.</translation>
    </message>
    <message>
        <source>Nothing that uses the tunnel covers it.</source>
        <translation>Nichts, was den Tunnel nutzt, umfasst es.</translation>
    </message>
    <message>
        <source>It is this device&apos;s own address.</source>
        <translation>Es ist die eigene Adresse dieses Geräts.</translation>
    </message>
    <message>
        <source>Your line {line} wants it, the gateway does not carry it.</source>
        <translation>Ihre Zeile {line} will es, das Gateway leitet es nicht weiter.</translation>
    </message>
    <message>
        <source>Your line {line} says so.</source>
        <translation>So sagt es Ihre Zeile {line}.</translation>
    </message>
    <message>
        <source>The gateway carries {rule}, and no line says otherwise.</source>
        <translation>{rule} leitet das Gateway weiter, und keine Zeile sagt etwas anderes.</translation>
    </message>
</context>
<context>
    <name>RoutesDialog</name>
    <message>
        <source>What uses the tunnel: {name}</source>
        <extracomment>Milliseconds without a key after which what is typed is looked at. Bytes of a file that is imported. Addresses of a name that are answered for. The list was applied. What the names were when the list was stored, and what they are now.</extracomment>
        <translation>Was den Tunnel nutzt: {name}</translation>
    </message>
    <message>
        <source>Looking up names…</source>
        <translation>Namen werden nachgeschlagen …</translation>
    </message>
    <message>
        <source>Names are looked up again each time you connect.</source>
        <translation>Namen werden bei jedem Verbinden erneut nachgeschlagen.</translation>
    </message>
    <message>
        <source>Looking up {name}…</source>
        <translation>{name} wird nachgeschlagen …</translation>
    </message>
    <message>
        <source>{name} has no address.</source>
        <translation>{name} hat keine Adresse.</translation>
    </message>
    <message>
        <source>Import destinations</source>
        <translation>Ziele importieren</translation>
    </message>
    <message>
        <source>it is not a text file</source>
        <translation>es ist keine Textdatei</translation>
    </message>
    <message>
        <source>{file} cannot be read: {why}</source>
        <translation>{file} kann nicht gelesen werden: {why}</translation>
    </message>
    <message>
        <source>Line {line} of {file}: {why}</source>
        <translation>Zeile {line} von {file}: {why}</translation>
    </message>
    <message>
        <source>Export destinations</source>
        <translation>Ziele exportieren</translation>
    </message>
    <message>
        <source>{file} cannot be written: {why}</source>
        <translation>{file} kann nicht geschrieben werden: {why}</translation>
    </message>
</context>
<context>
    <name>RoutesTable</name>
    <message>
        <source>Network</source>
        <translation>Netzwerk</translation>
    </message>
    <message>
        <source>Goes</source>
        <translation>Weg</translation>
    </message>
    <message>
        <source>Why</source>
        <translation>Warum</translation>
    </message>
</context>
<context>
    <name>RoutesView</name>
    <message>
        <source>&amp;Everything</source>
        <extracomment>Pixels below which what comes of the list stands under it.</extracomment>
        <translation>&amp;Alles</translation>
    </message>
    <message>
        <source>&amp;Only these</source>
        <translation>&amp;Nur diese</translation>
    </message>
    <message>
        <source>Everything e&amp;xcept these</source>
        <translation>Alles a&amp;ußer diesen</translation>
    </message>
    <message>
        <source>&amp;Add</source>
        <translation>&amp;Hinzufügen</translation>
    </message>
    <message>
        <source>&amp;Remove</source>
        <translation>&amp;Entfernen</translation>
    </message>
    <message>
        <source>&amp;Import…</source>
        <translation>&amp;Importieren …</translation>
    </message>
    <message>
        <source>Ex&amp;port…</source>
        <translation>E&amp;xportieren …</translation>
    </message>
    <message>
        <source>Pre&amp;sets</source>
        <translation>Vor&amp;lagen</translation>
    </message>
    <message>
        <source>&amp;Private networks</source>
        <translation>&amp;Private Netzwerke</translation>
    </message>
    <message>
        <source>Your &amp;local network, whatever it is</source>
        <translation>Ihr &amp;lokales Netzwerk, welches es auch ist</translation>
    </message>
    <message>
        <source>What the &amp;gateway offers</source>
        <translation>Was das &amp;Gateway anbietet</translation>
    </message>
    <message>
        <source>Nothing is listed yet. Add a destination above, or choose a preset.</source>
        <translation>Noch ist nichts eingetragen. Fügen Sie oben ein Ziel hinzu oder wählen Sie eine Vorlage.</translation>
    </message>
    <message>
        <source>O&amp;K</source>
        <translation>&amp;OK</translation>
    </message>
    <message>
        <source>App&amp;ly</source>
        <translation>Überneh&amp;men</translation>
    </message>
    <message>
        <source>&amp;Cancel</source>
        <translation>A&amp;bbrechen</translation>
    </message>
    <message>
        <source>What the gateway carries is known once you are connected. Until then, this assumes that it carries everything.</source>
        <translation>Was das Gateway weiterleitet, ist bekannt, sobald Sie verbunden sind. Bis dahin wird hier angenommen: alles.</translation>
    </message>
    <message>
        <source>Everything else goes directly.</source>
        <translation>Alles andere geht direkt.</translation>
    </message>
    <message>
        <source>The most specific network decides.</source>
        <translation>Das genaueste Netzwerk entscheidet.</translation>
    </message>
    <message>
        <source>Problem</source>
        <translation>Problem</translation>
    </message>
    <message>
        <source>Network, address or name, e.g. 10.0.0.0/8</source>
        <translation>Netzwerk, Adresse oder Name, z. B. 10.0.0.0/8</translation>
    </message>
    <message>
        <source>Destination to add</source>
        <translation>Hinzuzufügendes Ziel</translation>
    </message>
    <message>
        <source>Destinations</source>
        <translation>Ziele</translation>
    </message>
    <message>
        <source>&amp;Where would this go?</source>
        <translation>&amp;Wohin ginge dies?</translation>
    </message>
    <message>
        <source>An address or a name</source>
        <translation>Eine Adresse oder ein Name</translation>
    </message>
    <message>
        <source>Where would this go?</source>
        <translation>Wohin ginge dies?</translation>
    </message>
    <message>
        <source>Resulting routes</source>
        <translation>Sich ergebende Routen</translation>
    </message>
    <message>
        <source>All traffic of this computer uses the tunnel.</source>
        <translation>Der gesamte Verkehr dieses Rechners nutzt den Tunnel.</translation>
    </message>
    <message>
        <source>What is listed uses the tunnel, exceptions do not. The most specific line decides, in whatever order.</source>
        <translation>Was in der Liste steht, nutzt den Tunnel, Ausnahmen nicht. Die genaueste Zeile entscheidet, gleich in welcher Reihenfolge.</translation>
    </message>
    <message>
        <source>What is listed goes directly, exceptions do not. The most specific line decides, in whatever order.</source>
        <translation>Was in der Liste steht, geht direkt, Ausnahmen nicht. Die genaueste Zeile entscheidet, gleich in welcher Reihenfolge.</translation>
    </message>
</context>
<context>
    <name>SessionPage</name>
    <message>
        <source>Please wait…</source>
        <extracomment>The user wants to see or change which destinations use the tunnel. The user wants to choose between a tunnel and a proxy. The user wants to paste a new invite. What has a meaning for a tunnel only.</extracomment>
        <translation>Bitte warten …</translation>
    </message>
    <message>
        <source>&amp;Cancel</source>
        <translation>A&amp;bbrechen</translation>
    </message>
    <message>
        <source>&amp;Disconnect</source>
        <translation>&amp;Trennen</translation>
    </message>
    <message>
        <source>&amp;Try again</source>
        <translation>&amp;Erneut versuchen</translation>
    </message>
    <message>
        <source>&amp;Connect</source>
        <translation>&amp;Verbinden</translation>
    </message>
    <message>
        <source>Connect &amp;as</source>
        <translation>Verbinden &amp;als</translation>
    </message>
    <message>
        <source>Proxy only</source>
        <translation>Nur Proxy</translation>
    </message>
    <message>
        <source>Tunnel</source>
        <translation>Tunnel</translation>
    </message>
    <message>
        <source>&amp;What uses the tunnel</source>
        <translation>&amp;Was den Tunnel nutzt</translation>
    </message>
    <message>
        <source>&amp;Kill switch</source>
        <translation>&amp;Notausschalter</translation>
    </message>
</context>
<context>
    <name>SettingWords</name>
    <message>
        <source>&amp;Kill switch</source>
        <translation>&amp;Notausschalter</translation>
    </message>
    <message>
        <source>What happens to the tunnel&apos;s traffic while the tunnel is down.</source>
        <translation>Was mit dem Verkehr des Tunnels geschieht, solange der Tunnel nicht besteht.</translation>
    </message>
    <message>
        <source>Off</source>
        <translation>Aus</translation>
    </message>
    <message>
        <source>When qvpn gives up on the connection, traffic goes directly to the internet.</source>
        <translation>Gibt qvpn die Verbindung auf, geht der Verkehr direkt ins Internet.</translation>
    </message>
    <message>
        <source>While connected</source>
        <translation>Solange verbunden</translation>
    </message>
    <message>
        <source>From the moment you connect until you disconnect, nothing leaves outside the tunnel, even if qvpn crashes.</source>
        <translation>Vom Verbinden bis zum Trennen geht nichts am Tunnel vorbei, auch wenn qvpn abstürzt.</translation>
    </message>
    <message>
        <source>Always</source>
        <translation>Immer</translation>
    </message>
    <message>
        <source>Nothing leaves outside the tunnel, even after this computer restarts, until you release the block.</source>
        <translation>Nichts geht am Tunnel vorbei, auch nach einem Neustart des Rechners, bis Sie die Sperre aufheben.</translation>
    </message>
    <message>
        <source>Reach the &amp;local network</source>
        <translation>&amp;Lokales Netzwerk erreichen</translation>
    </message>
    <message>
        <source>Printers and other devices near you stay in reach, outside the tunnel. Leave it off in networks that you do not trust.</source>
        <translation>Drucker und andere Geräte in der Nähe bleiben außerhalb des Tunnels erreichbar. In Netzwerken, denen Sie nicht trauen, lassen Sie es aus.</translation>
    </message>
    <message>
        <source>Use the gateway&apos;s &amp;name servers</source>
        <translation>Name&amp;server des Gateways verwenden</translation>
    </message>
    <message>
        <source>The names of sites that you visit are looked up through the tunnel. Otherwise, your network&apos;s name servers see them.</source>
        <translation>Die Namen besuchter Seiten werden durch den Tunnel nachgeschlagen. Sonst sehen die Nameserver Ihres Netzwerks sie.</translation>
    </message>
    <message>
        <source>&amp;Transport</source>
        <translation>&amp;Transport</translation>
    </message>
    <message>
        <source>How packets travel to the gateway.</source>
        <translation>Wie Pakete zum Gateway gelangen.</translation>
    </message>
    <message>
        <source>Automatic</source>
        <translation>Automatisch</translation>
    </message>
    <message>
        <source>QUIC where the network lets it through, else TLS.</source>
        <translation>QUIC, wo das Netzwerk es durchlässt, sonst TLS.</translation>
    </message>
    <message>
        <source>QUIC over UDP</source>
        <translation>QUIC über UDP</translation>
    </message>
    <message>
        <source>The fastest; some networks block it.</source>
        <translation>Am schnellsten; manche Netzwerke sperren es.</translation>
    </message>
    <message>
        <source>TLS over TCP</source>
        <translation>TLS über TCP</translation>
    </message>
    <message>
        <source>Slower; works almost everywhere.</source>
        <translation>Langsamer; geht fast überall.</translation>
    </message>
    <message>
        <source>Sho&amp;w notifications</source>
        <translation>Benachri&amp;chtigungen anzeigen</translation>
    </message>
    <message>
        <source>Only for changes that you did not cause yourself.</source>
        <translation>Nur bei Änderungen, die Sie nicht selbst ausgelöst haben.</translation>
    </message>
    <message>
        <source>Lan&amp;guage</source>
        <translation>S&amp;prache</translation>
    </message>
    <message>
        <source>Takes effect the next time qvpn starts.</source>
        <translation>Wirkt ab dem nächsten Start von qvpn.</translation>
    </message>
    <message>
        <source>Same as the desktop</source>
        <translation>Wie der Desktop</translation>
    </message>
    <message>
        <source>L&amp;og</source>
        <translation>Pr&amp;otokoll</translation>
    </message>
    <message>
        <source>How much is recorded to help find the cause of a problem.</source>
        <translation>Wie viel aufgezeichnet wird, um die Ursache eines Problems zu finden.</translation>
    </message>
    <message>
        <source>Problems only</source>
        <translation>Nur Probleme</translation>
    </message>
    <message>
        <source>Normal</source>
        <translation>Normal</translation>
    </message>
    <message>
        <source>Everything</source>
        <translation>Alles</translation>
    </message>
</context>
<context>
    <name>SettingsDialog</name>
    <message>
        <source>Settings</source>
        <translation>Einstellungen</translation>
    </message>
    <message>
        <source>The kill switch and the local network apply at once, the rest from the next connection.</source>
        <translation>Der Notausschalter und das lokale Netzwerk gelten sofort, alles andere ab der nächsten Verbindung.</translation>
    </message>
    <message>
        <source>This app</source>
        <translation>Diese App</translation>
    </message>
    <message>
        <source>Gateway {name}</source>
        <translation>Gateway {name}</translation>
    </message>
</context>
<context>
    <name>TrafficCard</name>
    <message>
        <source>last 2 minutes</source>
        <translation>letzte 2 Minuten</translation>
    </message>
    <message>
        <source>Receiving {rate}</source>
        <translation>Empfang {rate}</translation>
    </message>
    <message>
        <source>Sending {rate}</source>
        <translation>Senden {rate}</translation>
    </message>
    <message>
        <source>Received in this session</source>
        <translation>In dieser Sitzung empfangen</translation>
    </message>
    <message>
        <source>Sent in this session</source>
        <translation>In dieser Sitzung gesendet</translation>
    </message>
    <message>
        <source>{name}: {value}</source>
        <translation>{name}: {value}</translation>
    </message>
    <message>
        <source>Traffic of the last two minutes</source>
        <translation>Verkehr der letzten zwei Minuten</translation>
    </message>
    <message>
        <source>Receiving {down}, sending {up}</source>
        <translation>Empfang {down}, Senden {up}</translation>
    </message>
</context>
<context>
    <name>TrayMenu</name>
    <message>
        <source>Open the &amp;sign-in page</source>
        <translation>An&amp;meldeseite öffnen</translation>
    </message>
    <message>
        <source>Release the &amp;block</source>
        <translation>Sperre auf&amp;heben</translation>
    </message>
    <message>
        <source>&amp;Profile</source>
        <translation>&amp;Profil</translation>
    </message>
    <message>
        <source>&amp;Routes</source>
        <translation>&amp;Routen</translation>
    </message>
    <message>
        <source>&amp;Open qvpn</source>
        <translation>qvpn ö&amp;ffnen</translation>
    </message>
    <message>
        <source>&amp;Quit</source>
        <translation>&amp;Beenden</translation>
    </message>
    <message>
        <source>&amp;Disconnect</source>
        <translation>&amp;Trennen</translation>
    </message>
    <message>
        <source>&amp;Try again</source>
        <translation>&amp;Erneut versuchen</translation>
    </message>
    <message>
        <source>&amp;Connect</source>
        <translation>&amp;Verbinden</translation>
    </message>
    <message>
        <source>&amp;Choose…</source>
        <translation>&amp;Auswählen …</translation>
    </message>
</context>
<context>
    <name>Words</name>
    <message>
        <source>Not connected</source>
        <extracomment>States that mean something else for a proxy. One of `qvpn_core.client.explain.warnings`.</extracomment>
        <translation>Nicht verbunden</translation>
    </message>
    <message>
        <source>Connecting…</source>
        <translation>Wird verbunden …</translation>
    </message>
    <message>
        <source>Protected</source>
        <translation>Geschützt</translation>
    </message>
    <message>
        <source>Connected</source>
        <translation>Verbunden</translation>
    </message>
    <message>
        <source>Reconnecting…</source>
        <translation>Wird wieder verbunden …</translation>
    </message>
    <message>
        <source>Disconnecting…</source>
        <translation>Wird getrennt …</translation>
    </message>
    <message>
        <source>Blocked</source>
        <translation>Gesperrt</translation>
    </message>
    <message>
        <source>Connection failed</source>
        <translation>Verbindung fehlgeschlagen</translation>
    </message>
    <message>
        <source>The tunnel of {user} decides where your traffic goes.</source>
        <translation>Der Tunnel von {user} bestimmt, wohin Ihr Datenverkehr geht.</translation>
    </message>
    <message>
        <source>Your traffic goes directly to the internet.</source>
        <translation>Ihr Verkehr geht direkt ins Internet.</translation>
    </message>
    <message>
        <source>Waiting for your permission.</source>
        <translation>Wartet auf Ihre Erlaubnis.</translation>
    </message>
    <message>
        <source>Setting up the tunnel.</source>
        <translation>Der Tunnel wird aufgebaut.</translation>
    </message>
    <message>
        <source>Traffic for the tunnel waits. Nothing leaves outside it.</source>
        <translation>Verkehr für den Tunnel wartet und geht nicht an ihm vorbei.</translation>
    </message>
    <message>
        <source>Putting your network back as it was.</source>
        <translation>Ihr Netzwerk wird wiederhergestellt.</translation>
    </message>
    <message>
        <source>The kill switch lets nothing out until you decide.</source>
        <translation>Der Notausschalter lässt nichts hinaus, bis Sie entscheiden.</translation>
    </message>
    <message>
        <source>Programs that use the proxy reach the gateway, others go directly.</source>
        <translation>Programme, die den Proxy verwenden, gehen über das Gateway, andere direkt.</translation>
    </message>
    <message>
        <source>Programs that use the proxy have to wait.</source>
        <translation>Programme, die den Proxy verwenden, müssen warten.</translation>
    </message>
    <message>
        <source>Ending the proxy.</source>
        <translation>Der Proxy wird beendet.</translation>
    </message>
    <message>
        <source>Connecting to the gateway.</source>
        <translation>Verbindung zum Gateway wird aufgebaut.</translation>
    </message>
    <message numerus="yes">
        <source>%n network(s) use the tunnel, the rest goes directly.</source>
        <translation>
            <numerusform>%n Netzwerk nutzt den Tunnel, der Rest geht direkt.</numerusform>
            <numerusform>%n Netzwerke nutzen den Tunnel, der Rest geht direkt.</numerusform>
        </translation>
    </message>
    <message>
        <source>What the gateway carries uses the tunnel, the rest goes directly.</source>
        <translation>Was das Gateway weiterleitet, nutzt den Tunnel, der Rest geht direkt.</translation>
    </message>
    <message numerus="yes">
        <source>All traffic uses the tunnel, except %n network(s).</source>
        <translation>
            <numerusform>Der gesamte Verkehr nutzt den Tunnel, außer %n Netzwerk.</numerusform>
            <numerusform>Der gesamte Verkehr nutzt den Tunnel, außer %n Netzwerken.</numerusform>
        </translation>
    </message>
    <message>
        <source>All traffic uses the tunnel.</source>
        <translation>Der gesamte Verkehr nutzt den Tunnel.</translation>
    </message>
    <message>
        <source>since {time}</source>
        <translation>seit {time}</translation>
    </message>
    <message>
        <source>since {day}, {time}</source>
        <translation>seit {day}, {time}</translation>
    </message>
    <message>
        <source>Ask for your permission</source>
        <translation>Um Ihre Erlaubnis bitten</translation>
    </message>
    <message>
        <source>Find the gateway</source>
        <translation>Gateway finden</translation>
    </message>
    <message>
        <source>Agree on encryption</source>
        <translation>Verschlüsselung vereinbaren</translation>
    </message>
    <message>
        <source>Identify this device</source>
        <translation>Dieses Gerät ausweisen</translation>
    </message>
    <message>
        <source>Receive addresses</source>
        <translation>Adressen empfangen</translation>
    </message>
    <message>
        <source>Set up routes</source>
        <translation>Routen einrichten</translation>
    </message>
    <message>
        <source>{network} on {link} is out of reach. To keep it, switch on “Reach the local network” in the settings.</source>
        <translation>{network} an {link} ist nicht erreichbar. Wenn Sie es brauchen, schalten Sie in den Einstellungen „Lokales Netzwerk erreichen“ ein.</translation>
    </message>
    <message>
        <source>The gateway&apos;s name was not found</source>
        <translation>Der Name des Gateways wurde nicht gefunden</translation>
    </message>
    <message>
        <source>The gateway does not answer</source>
        <translation>Das Gateway antwortet nicht</translation>
    </message>
    <message>
        <source>This computer has no network connection</source>
        <translation>Dieser Rechner hat keine Netzwerkverbindung</translation>
    </message>
    <message>
        <source>This network wants you to sign in</source>
        <translation>Dieses Netzwerk verlangt eine Anmeldung</translation>
    </message>
    <message>
        <source>This may not be your gateway</source>
        <translation>Das ist vielleicht nicht Ihr Gateway</translation>
    </message>
    <message>
        <source>The gateway does not know this device</source>
        <translation>Das Gateway kennt dieses Gerät nicht</translation>
    </message>
    <message>
        <source>The gateway refused the connection</source>
        <translation>Das Gateway hat die Verbindung abgelehnt</translation>
    </message>
    <message>
        <source>This network cannot carry the tunnel</source>
        <translation>Dieses Netzwerk kann den Tunnel nicht tragen</translation>
    </message>
    <message>
        <source>The connection was lost</source>
        <translation>Die Verbindung ging verloren</translation>
    </message>
    <message>
        <source>The gateway broke the rules of the protocol</source>
        <translation>Das Gateway hat gegen das Protokoll verstoßen</translation>
    </message>
    <message>
        <source>This device&apos;s key is not available</source>
        <translation>Der Schlüssel dieses Geräts ist nicht verfügbar</translation>
    </message>
    <message>
        <source>Permission is missing</source>
        <translation>Eine Berechtigung fehlt</translation>
    </message>
    <message>
        <source>The tunnel device is not available</source>
        <translation>Das Tunnelgerät ist nicht verfügbar</translation>
    </message>
    <message>
        <source>Name servers could not be set</source>
        <translation>Nameserver konnten nicht eingestellt werden</translation>
    </message>
    <message>
        <source>qvpn&apos;s helper is not installed</source>
        <translation>Der Helfer von qvpn ist nicht installiert</translation>
    </message>
    <message>
        <source>No service that grants permission is running</source>
        <translation>Es läuft kein Dienst, der die Erlaubnis erteilt</translation>
    </message>
    <message>
        <source>No program can ask you for permission</source>
        <translation>Kein Programm kann Sie um Erlaubnis bitten</translation>
    </message>
    <message>
        <source>Permission was not given</source>
        <translation>Die Erlaubnis wurde nicht erteilt</translation>
    </message>
    <message>
        <source>qvpn&apos;s helper did not start</source>
        <translation>Der Helfer von qvpn ist nicht gestartet</translation>
    </message>
    <message>
        <source>The app and its helper are of different versions</source>
        <translation>Die App und ihr Helfer haben verschiedene Versionen</translation>
    </message>
    <message>
        <source>qvpn&apos;s helper has ended</source>
        <translation>Der Helfer von qvpn hat sich beendet</translation>
    </message>
    <message>
        <source>Somebody ended the session</source>
        <translation>Jemand hat die Sitzung beendet</translation>
    </message>
    <message>
        <source>Another tunnel is up on this computer</source>
        <translation>Auf diesem Rechner besteht schon ein Tunnel</translation>
    </message>
    <message>
        <source>This is not allowed</source>
        <translation>Das ist nicht erlaubt</translation>
    </message>
    <message>
        <source>This computer&apos;s network could not be set up</source>
        <translation>Das Netzwerk dieses Rechners konnte nicht eingerichtet werden</translation>
    </message>
    <message>
        <source>Another program listens at this address</source>
        <translation>Ein anderes Programm belegt diese Adresse</translation>
    </message>
    <message>
        <source>This cannot be done</source>
        <translation>Das geht nicht</translation>
    </message>
    <message>
        <source>The running session does not answer</source>
        <translation>Die laufende Sitzung antwortet nicht</translation>
    </message>
    <message>
        <source>The session ended unexpectedly</source>
        <translation>Die Sitzung endete unerwartet</translation>
    </message>
    <message>
        <source>There is no invite in this text</source>
        <translation>In diesem Text ist keine Einladung</translation>
    </message>
    <message>
        <source>There are several invites in this text</source>
        <translation>In diesem Text sind mehrere Einladungen</translation>
    </message>
    <message>
        <source>The invite is cut off</source>
        <translation>Die Einladung ist abgeschnitten</translation>
    </message>
    <message>
        <source>The invite was changed on its way</source>
        <translation>Die Einladung wurde unterwegs verändert</translation>
    </message>
    <message>
        <source>The invite is for a newer qvpn</source>
        <translation>Die Einladung ist für ein neueres qvpn</translation>
    </message>
    <message>
        <source>The invite has expired</source>
        <translation>Die Einladung ist abgelaufen</translation>
    </message>
    <message>
        <source>The gateway refused the invite</source>
        <translation>Das Gateway hat die Einladung abgelehnt</translation>
    </message>
    <message>
        <source>qvpn has a defect</source>
        <translation>qvpn hat einen Fehler</translation>
    </message>
    <message>
        <source>The connection failed</source>
        <translation>Die Verbindung ist fehlgeschlagen</translation>
    </message>
    <message>
        <source>{user} is connected on this computer. Ask {user} to disconnect; an administrator can end it with: qvpn unlock</source>
        <translation>{user} ist auf diesem Rechner verbunden. Bitten Sie {user}, die Verbindung zu trennen; ein Administrator kann sie beenden mit: qvpn unlock</translation>
    </message>
    <message>
        <source>Sign in at {address}. qvpn lets your browser out for that and connects afterwards.</source>
        <translation>Melden Sie sich unter {address} an. qvpn lässt dafür Ihren Browser hinaus und verbindet danach.</translation>
    </message>
    <message>
        <source>SOCKS proxy</source>
        <translation>SOCKS-Proxy</translation>
    </message>
    <message>
        <source>HTTP proxy</source>
        <translation>HTTP-Proxy</translation>
    </message>
    <message>
        <source>To {target}</source>
        <translation>Zu {target}</translation>
    </message>
    <message numerus="yes">
        <source>Only %n network(s)</source>
        <translation>
            <numerusform>Nur %n Netzwerk</numerusform>
            <numerusform>Nur %n Netzwerke</numerusform>
        </translation>
    </message>
    <message>
        <source>Everything</source>
        <translation>Alles</translation>
    </message>
    <message>
        <source>{what}, except {count}</source>
        <translation>{what}, außer {count}</translation>
    </message>
    <message>
        <source>{number} ms</source>
        <translation>{number} ms</translation>
    </message>
    <message>
        <source>below {number} %</source>
        <translation>unter {number} %</translation>
    </message>
    <message>
        <source>{number} %</source>
        <translation>{number} %</translation>
    </message>
</context>
</TS>
