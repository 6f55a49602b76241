<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE TS>
<TS version="2.1" language="en" sourcelanguage="en">
<context>
    <name>DiagnosticsWords</name>
    <message numerus="yes">
        <source>%n problem(s) found.</source>
        <translation>
            <numerusform>%n problem found.</numerusform>
            <numerusform>%n problems found.</numerusform>
        </translation>
    </message>
    <message numerus="yes">
        <source>No problem found, %n thing(s) to look at.</source>
        <translation>
            <numerusform>No problem found, %n thing to look at.</numerusform>
            <numerusform>No problem found, %n things to look at.</numerusform>
        </translation>
    </message>
</context>
<context>
    <name>Words</name>
    <message numerus="yes">
        <source>%n network(s) use the tunnel, the rest goes directly.</source>
        <translation>
            <numerusform>%n network uses the tunnel, the rest goes directly.</numerusform>
            <numerusform>%n networks use the tunnel, the rest goes directly.</numerusform>
        </translation>
    </message>
    <message numerus="yes">
        <source>All traffic uses the tunnel, except %n network(s).</source>
        <translation>
            <numerusform>All traffic uses the tunnel, except %n network.</numerusform>
            <numerusform>All traffic uses the tunnel, except %n networks.</numerusform>
        </translation>
    </message>
    <message numerus="yes">
        <source>Only %n network(s)</source>
        <translation>
            <numerusform>Only %n network</numerusform>
            <numerusform>Only %n networks</numerusform>
        </translation>
    </message>
</context>
</TS>
